//! Objects that are swapped as a whole, and each time only in the place of the version that was read or written last: a manifest, the position.
//! Promises that what is put late (by a process that was killed, over a connection that was thought to be dead, by a second writer) undoes nothing
//! newer: the store refuses it, by `If-Match` or `If-None-Match` on S3, under a lock in a folder.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};

use crate::error::LakeError;

/// The largest object that is read whole, bytes: a manifest, a file that is merged, which has 64 MiB of rows at most.
const MOST: u64 = 256 << 20;
/// A version as S3 writes one, of no object.
const NO_VERSION: &str = "\"00000000000000000000000000000000\"";

/// Which version of an object was read or written last. None: there was no object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version(Option<UpdateVersion>);

impl Version {
    /// False where there was no object.
    pub(crate) const fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

/// An object and its version. None: there is none.
pub(crate) async fn read(store: &Arc<dyn ObjectStore>, place: &Path) -> Result<Option<(Bytes, Version)>, LakeError> {
    let found = match store.get(place).await {
        Ok(found) => found,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if found.meta.size > MOST {
        return Err(LakeError::damaged(place, format!("it has {} bytes", found.meta.size)));
    }
    let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
    Ok(Some((found.bytes().await?, Version(Some(version)))))
}

/// Puts an object in the place of the known version, and of no other.
pub(crate) async fn swap(
    store: &Arc<dyn ObjectStore>,
    place: &Path,
    object: Vec<u8>,
    known: &Version,
) -> Result<Version, LakeError> {
    let object = Bytes::from(object);
    let mode = match &known.0 {
        Some(version) => PutMode::Update(version.clone()),
        None => PutMode::Create,
    };
    match store.put_opts(place, PutPayload::from(object.clone()), PutOptions::from(mode)).await {
        Ok(put) => Ok(Version(Some(put.into()))),
        // Tried again by the store's client, whose first try was done and its answer lost: it is there.
        Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => match read(store, place).await? {
            Some((there, version)) if there == object => Ok(version),
            _ => Err(LakeError::Overtaken { object: place.to_string() }),
        },
        Err(error) => Err(error.into()),
    }
}

/// Has the store put an object that is there, as it is, where it must refuse that: as a new one, and in the place of a version that there never was. Some
/// know the one condition and not the other. A store that does not know both is told of at a start.
pub(crate) async fn check_conditions(store: &Arc<dyn ObjectStore>, place: &Path) -> Result<(), LakeError> {
    let Some((object, _)) = read(store, place).await? else {
        return Err(LakeError::damaged(place, "it was written a moment ago, and is not there"));
    };
    let of_nothing = UpdateVersion { e_tag: Some(NO_VERSION.to_owned()), version: None };
    for (mode, took) in [
        (PutMode::Create, "`If-None-Match: *` for an object that is there"),
        (PutMode::Update(of_nothing), "`If-Match` of a version that is not there"),
    ] {
        match store.put_opts(place, PutPayload::from(object.clone()), PutOptions::from(mode)).await {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(LakeError::NoConditions { store: store.to_string(), took }),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::folder::Folder;
    use crate::watched::Watched;
    use object_store::memory::InMemory;

    fn place() -> Path {
        Path::from("tenant=a/astray/manifest.json")
    }

    #[tokio::test]
    async fn what_is_late_undoes_nothing_newer() {
        let folder = tempfile::tempdir().unwrap();
        let stores: [Arc<dyn ObjectStore>; 2] = [Arc::new(InMemory::new()), Folder::open(folder.path()).unwrap()];
        for store in stores {
            assert_eq!(read(&store, &place()).await.unwrap(), None);
            let none = Version::default();
            let first = swap(&store, &place(), b"first".to_vec(), &none).await.unwrap();
            let second = swap(&store, &place(), b"second".to_vec(), &first).await.unwrap();
            for (late, known) in [("first, late", &none), ("second, late", &first)] {
                let refused = swap(&store, &place(), late.into(), known).await.unwrap_err();
                assert!(matches!(refused, LakeError::Overtaken { .. }), "{store}: {refused}");
            }
            assert_eq!(read(&store, &place()).await.unwrap(), Some((Bytes::from("second"), second.clone())), "{store}");
            // The same put once more, its answer lost.
            let again = swap(&store, &place(), b"second".to_vec(), &first).await.unwrap();
            assert_eq!(again, second, "{store}");
            let gone = Path::from("tenant=a/astray/gone.json");
            assert!(swap(&store, &gone, b"x".to_vec(), &second).await.is_err(), "{store}: nothing is there to be swapped");
            check_conditions(&store, &place()).await.unwrap();
            assert_eq!(read(&store, &place()).await.unwrap().unwrap().0, Bytes::from("second"), "{store}");
        }
    }

    #[tokio::test]
    async fn a_store_that_knows_no_conditions_is_refused_and_keeps_what_it_has() {
        let ignores: [fn(&PutMode) -> bool; 3] =
            [|_| true, |mode| matches!(mode, PutMode::Create), |mode| matches!(mode, PutMode::Update(_))];
        for ignored in ignores {
            let store: Arc<dyn ObjectStore> = Watched::careless(ignored);
            swap(&store, &place(), b"there".to_vec(), &Version::default()).await.unwrap();
            let refused = check_conditions(&store, &place()).await.unwrap_err();
            assert!(matches!(refused, LakeError::NoConditions { .. }), "{refused}");
            assert_eq!(read(&store, &place()).await.unwrap().unwrap().0, Bytes::from("there"));
        }
    }
}
