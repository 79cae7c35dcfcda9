import { openTestStore, temporaryFolder } from '../support/store/store.ts'
import { blobStoreContract } from './blob-store.ts'

blobStoreContract('FileBlobStore', async () => (await openTestStore(await temporaryFolder())).blobs)
