import type { DoctorContext, Task } from './context.ts'
export function listListenerTasks(_context: DoctorContext): Task[] {
  return []
}
