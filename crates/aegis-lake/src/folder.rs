//! A folder of this machine as an object store, in which what was put is on the disk before the put is answered.
//! Promises that a name is at each moment the old object or the new one, whole, also after a power failure; and that of two programs which put
//! in the place of one version only the first does, which a lock decides.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UpdateVersion,
};

/// What a file is called until it is whole: the store behind leaves such names out of its lists. One writer puts one object at a time.
const UNFINISHED: &str = "#1";

/// Whoever puts under a condition has a lock on this file meanwhile. It is left out of lists as well.
const LOCK: &str = "lock#1";

/// Files and folders are their owner's alone.
const OWNER_ONLY: u32 = 0o600;
const OWNER_ONLY_FOLDER: u32 = 0o700;

/// Objects as files below a folder.
#[derive(Debug)]
pub struct Folder {
    files: LocalFileSystem,
    root: PathBuf,
}

impl Folder {
    /// The store of a folder, which must be there.
    pub fn open(root: &FilePath) -> Result<Arc<dyn ObjectStore>> {
        // A folder that has nothing any more goes too: there is one writer, and it makes the folders that it writes to.
        let files = LocalFileSystem::new_with_prefix(root)?.with_automatic_cleanup(true);
        Ok(Arc::new(Self { files, root: fs::canonicalize(root).map_err(failed)? }))
    }

    /// Keeps other programs from putting under a condition until it is let go of. It is gone with the process that has it.
    async fn lock(&self) -> Result<File> {
        let place = self.root.join(LOCK);
        let locked = tokio::task::spawn_blocking(move || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(OWNER_ONLY).open(&place)?;
            file.lock()?;
            std::io::Result::Ok(file)
        });
        locked.await.map_err(failed)?.map_err(failed)
    }

    /// Which version of an object is there. None: there is no object.
    async fn version(&self, location: &Path) -> Result<Option<String>> {
        match self.files.head(location).await {
            Ok(meta) => Ok(Some(meta.e_tag.unwrap_or_default())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Refuses what may not be put in the place of what is there.
    async fn check(&self, location: &Path, mode: &PutMode) -> Result<()> {
        let path = || location.to_string();
        match (mode, self.version(location).await?) {
            (PutMode::Overwrite, _) | (PutMode::Create, None) => Ok(()),
            (PutMode::Create, Some(_)) => Err(Error::AlreadyExists { path: path(), source: "it is there".into() }),
            (PutMode::Update(UpdateVersion { e_tag: Some(known), .. }), Some(there)) if *known == there => Ok(()),
            (PutMode::Update(_), _) => Err(Error::Precondition { path: path(), source: "another version is there".into() }),
        }
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Folder({})", self.root.display())
    }
}

/// Writes beside the place, has the disk take it, and puts it there.
fn put_durably(root: &FilePath, place: &FilePath, payload: &PutPayload) -> std::io::Result<()> {
    let folder = place.parent().ok_or_else(|| std::io::Error::other("an object without a folder"))?;
    let is_new = !folder.is_dir();
    DirBuilder::new().recursive(true).mode(OWNER_ONLY_FOLDER).create(folder)?;
    let mut unfinished = place.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(OWNER_ONLY).open(&unfinished)?;
    for part in payload.iter() {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(&unfinished, place)?;
    for above in folder.ancestors() {
        File::open(above)?.sync_all()?;
        if !is_new || above == root {
            break;
        }
    }
    Ok(())
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "folder", source: Box::new(error) }
}

#[async_trait]
impl ObjectStore for Folder {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if !opts.attributes.is_empty() {
            return self.files.put_opts(location, payload, opts).await;
        }
        let place = self.files.path_to_filesystem(location)?;
        let root = self.root.clone();
        let put = move || put_durably(&root, &place, &payload);
        if opts.mode == PutMode::Overwrite {
            tokio::task::spawn_blocking(put).await.map_err(failed)?.map_err(failed)?;
            return Ok(PutResult { e_tag: None, version: None });
        }
        let _until_it_is_there = self.lock().await?;
        self.check(location, &opts.mode).await?;
        tokio::task::spawn_blocking(put).await.map_err(failed)?.map_err(failed)?;
        Ok(PutResult { e_tag: self.version(location).await?, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_put_replaces_the_whole_object_and_what_is_unfinished_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Folder::open(folder.path()).unwrap();
        let place = Path::from("tenant=a/astray/manifest.json");
        for text in ["first", "second, longer", "3"] {
            store.put(&place, PutPayload::from(text)).await.unwrap();
            assert_eq!(store.get(&place).await.unwrap().bytes().await.unwrap(), Bytes::from(text));
        }
        let written = folder.path().join("tenant=a/astray");
        for (path, mode) in [(written.join("manifest.json"), OWNER_ONLY), (written.clone(), OWNER_ONLY_FOLDER)] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
        fs::write(written.join("0000000002.parquet#1"), "half").unwrap();
        let listed = store.list_with_delimiter(Some(&Path::from("tenant=a/astray"))).await.unwrap();
        let names: Vec<String> = listed.objects.iter().map(|object| object.location.to_string()).collect();
        assert_eq!(names, ["tenant=a/astray/manifest.json"]);
    }
}
