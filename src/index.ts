/** Exports what a program needs to embed a mirror: load or make a configuration, start, close. */
export { startMirror, type RunningMirror, type StartOptions } from './daemon/start.ts'
export { defaultConfig } from './config/config.ts'
export { loadConfig } from './config/load.ts'
export { mirrorPaths, type MirrorPaths } from './config/paths.ts'
export type { Config } from './config/config.ts'
export { MirrorError } from './lib/errors.ts'
export { silentLogger, type Logger } from './lib/logger.ts'
export type { StatusReport } from './admin/api.ts'
