import type { DoctorContext, Task } from './context.ts'
export async function listClientTasks(_context: DoctorContext): Promise<Task[]> {
  return []
}
