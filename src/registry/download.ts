export interface Download {
  x: 1
}
