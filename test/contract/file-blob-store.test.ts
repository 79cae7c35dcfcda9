import { openTestStore, temporaryFolder } from '../unit/store/support/store.ts'
import { blobStoreContract } from './blob-store.ts'

blobStoreContract('FileBlobStore', async () => (await openTestStore(await temporaryFolder())).blobs)
