//! The NATS server's users: an edge becomes one by its enrolment. Written as a file that the server's configuration includes.

use std::io::Write;
use std::path::{Path, PathBuf};

use aegis_bus::users::{Role, User, render};
use aegis_store::Store;
use anyhow::Context;

use crate::enrolled::load_or_create_nkey;
use crate::nats::admin_nkey_file;
use crate::parts::make_private_folder;

/// The login of the control plane in its data folder.
pub(crate) fn control_nkey_file(data: &Path) -> PathBuf {
    data.join("keys").join("nats.nk")
}

/// The server's users as this data folder knows them: `admin` and `control`, whose logins are made where they are missing, and each edge with
/// the login that it was enrolled with last.
pub(crate) async fn of(data: &Path, store: &Store) -> anyhow::Result<String> {
    make_private_folder(&data.join("keys"))?;
    let mut users = vec![
        User { role: Role::Admin, nkey: load_or_create_nkey(&admin_nkey_file(data))?.public_key() },
        User { role: Role::Control, nkey: load_or_create_nkey(&control_nkey_file(data))?.public_key() },
    ];
    let before = users.len();
    for key in store.edge_keys().await.context("store")? {
        // One that the server does not take would keep it from reading any.
        if nkeys::KeyPair::from_public_key(&key.nkey).is_err() || users.iter().any(|user| user.nkey == key.nkey) {
            tracing::error!(
                edge_id = key.edge_id,
                "the login of an edge is no nkey, or another's; the NATS server is not told of it"
            );
            continue;
        }
        let known = users.iter().skip(before).position(|user| user.role.id() == key.edge_id);
        let user = User { role: Role::Edge { id: key.edge_id, tenants: key.tenants }, nkey: key.nkey };
        match known {
            Some(place) => users[before + place] = user,
            None => users.push(user),
        }
    }
    Ok(render(&users)?)
}

/// Writes them, whole or not at all. Public keys only: the server may run as somebody else.
pub(crate) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let about = || format!("cannot write {}", file.display());
    let partial = file.with_extension("partial");
    let mut opened = std::fs::File::create(&partial).with_context(about)?;
    opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()).with_context(about)?;
    std::fs::rename(&partial, file).with_context(about)
}
