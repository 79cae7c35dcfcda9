// Keeps the modules that every start and `mirror status` need in one file. The bundler splits shared code by its importers, into
// many small files; it injects this file into every entry point, so these modules have the same importers.
import '@oclif/core/config'
import '../../src/admin/access.ts'
import '../../src/admin/state.ts'
import '../../src/cli/base-command.ts'
import '../../src/cli/render/status.ts'
import '../../src/config/paths.ts'
import '../../src/lib/fs.ts'
