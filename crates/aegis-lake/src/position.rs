//! How far the lake has come on the bus: an object beside the rows, so that both are restored together or not at all.
//! Promises that every event up to the position is in the lake. One that is behind costs time, and no row twice.

use std::sync::Arc;

use aegis_bus::Place;
use aegis_detect::Watermarks;
use aegis_model::Timestamp;
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::error::LakeError;
use crate::swap::{self, Version};

const NAME: &str = "position.json";

/// Up to which time of the bus a lake has all events. None: it does not say.
pub async fn stored_to(store: &Arc<dyn ObjectStore>) -> Result<Option<Timestamp>, LakeError> {
    let Some((bytes, _)) = swap::read(store, &Path::from(NAME)).await? else { return Ok(None) };
    Ok(parse(&bytes)?.stored_to)
}

/// A place on the bus, and what was known there.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) place: Place,
    /// The stream's name in manifests: another one whenever its sequences mean something else than before.
    pub(crate) stream: String,
    /// By which it is decided what is late.
    pub(crate) watermarks: Watermarks,
    /// When the bus stored the event there. A position of before does not say.
    #[serde(default)]
    pub(crate) stored_to: Option<Timestamp>,
    /// The folders of hours with files to merge or to remove.
    pub(crate) unfinished: Vec<String>,
}

fn parse(bytes: &[u8]) -> Result<Position, LakeError> {
    serde_json::from_slice(bytes).map_err(|error| LakeError::damaged(NAME, error))
}

impl Position {
    /// Where it lies.
    pub(crate) fn at() -> Path {
        Path::from(NAME)
    }

    /// The position of a lake, None for one that has none yet or a damaged one; and the version in whose place the next is put.
    pub(crate) async fn read(store: &Arc<dyn ObjectStore>) -> Result<(Option<Self>, Version), LakeError> {
        let Some((bytes, version)) = swap::read(store, &Self::at()).await? else { return Ok((None, Version::default())) };
        match parse(&bytes) {
            Ok(position) => Ok((Some(position), version)),
            Err(error) => {
                tracing::warn!(%error, "the lake does not know how far it is; reading again what the bus has");
                Ok((None, version))
            }
        }
    }

    /// Puts it in the place of a version.
    pub(crate) async fn write(&self, store: &Arc<dyn ObjectStore>, known: &Version) -> Result<Version, LakeError> {
        let bytes = serde_json::to_vec(self).map_err(|error| LakeError::damaged(NAME, error))?;
        swap::swap(store, &Self::at(), bytes, known).await
    }
}
