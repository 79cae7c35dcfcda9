// Shared code is split by who needs it, into many small files. What every start needs, or `mirror status`, is named here, given to
// each part of the program, and so lies in one.
import '@oclif/core/config'
import '../../src/admin/access.ts'
import '../../src/admin/state.ts'
import '../../src/cli/base-command.ts'
import '../../src/cli/render/status.ts'
import '../../src/config/paths.ts'
import '../../src/lib/package-root.ts'
