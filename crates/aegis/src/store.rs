//! Where the control plane keeps its tables: files in its data folder, or a Postgres database whose address stands in a private file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_model::Clock;
use aegis_store::{Secret, Store};
use anyhow::{Context, bail};

use crate::config::StoreSection;
use crate::parts::read_private;

/// The variable that commands without a configuration take it from: `store.url_file`.
const URL_FILE: &str = "AEGIS_STORE_URL_FILE";

/// Says, in a control plane's folder, which database has its tables: a command that does not know must not begin anew with files.
const MARKER: &str = "store.place";

/// Opens the store of the control plane whose folder this is.
pub(crate) async fn open(data: &Path, section: &StoreSection, clock: Arc<dyn Clock>) -> anyhow::Result<Store> {
    let url_file = &section.url_file;
    let (file, marker) = (data.join("store.db"), data.join(MARKER));
    if url_file.as_os_str().is_empty() {
        if let Ok(place) = std::fs::read_to_string(&marker) {
            bail!(
                "the tables of {} are in {}; name the file with its address as store.url_file, or in the variable {URL_FILE} \
                 (remove {} to begin anew with files)",
                data.display(),
                place.trim(),
                marker.display()
            );
        }
        return Store::open(&file, clock).await.context("store");
    }
    if file.exists() {
        bail!(
            "{} holds a control plane's tables already, and {} names a database for them: what is in the file would not be seen; \
             move it away, or leave store.url_file empty",
            file.display(),
            url_file.display()
        );
    }
    let address = read_private(url_file).context("store.url_file")?;
    let patience = Duration::from_secs(section.answer_timeout_s);
    let store = Store::connect(&Secret::new(address.trim().to_owned()), patience, clock).await?;
    std::fs::write(&marker, format!("{}\n", store.place())).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(store)
}

/// The same for a command that works on the folder beside the running program.
pub(crate) async fn open_beside(data: &Path, clock: Arc<dyn Clock>) -> anyhow::Result<Store> {
    let url_file = std::env::var_os(URL_FILE).map(PathBuf::from).unwrap_or_default();
    open(data, &StoreSection { url_file, ..StoreSection::default() }, clock).await
}
