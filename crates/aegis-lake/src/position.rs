//! How far the lake has come on the bus: an object beside the rows, so that both are restored together or not at all.
//! Promises that every event up to the position is in the lake. One that is behind costs time, and no row twice.

use std::sync::Arc;

use aegis_bus::Place;
use aegis_detect::Watermarks;
use aegis_model::Timestamp;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};

use crate::error::LakeError;

const NAME: &str = "position.json";

/// Up to which time of the bus a lake has all events. None: it does not say.
pub async fn stored_to(store: &Arc<dyn ObjectStore>) -> Result<Option<Timestamp>, LakeError> {
    Ok(Position::read(store).await?.and_then(|position| position.stored_to))
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

impl Position {
    /// None for a lake that has none yet.
    pub(crate) async fn read(store: &Arc<dyn ObjectStore>) -> Result<Option<Self>, LakeError> {
        let bytes = match store.get(&Path::from(NAME)).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| LakeError::damaged(NAME, error))
    }

    pub(crate) async fn write(&self, store: &Arc<dyn ObjectStore>) -> Result<(), LakeError> {
        let bytes = serde_json::to_vec(self).map_err(|error| LakeError::damaged(NAME, error))?;
        store.put(&Path::from(NAME), PutPayload::from(bytes)).await?;
        Ok(())
    }
}
