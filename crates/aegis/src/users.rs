//! The NATS server's users: an edge becomes one by its enrolment. Written as a file that the server's configuration includes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use aegis_bus::users::{Part, Role, User, render};
use aegis_store::Store;
use anyhow::{Context, bail};

use crate::enrolled::load_or_create_nkey;
use crate::nats::admin_nkey_file;
use crate::parts::make_private_folder;

/// Where a data folder has its keys.
fn keys_folder(data: &Path) -> PathBuf {
    data.join("keys")
}

/// The login of the control plane in its data folder.
pub(crate) fn control_nkey_file(data: &Path) -> PathBuf {
    keys_folder(data).join("nats.nk")
}

/// The login of what runs beside control.
fn part_nkey_file(folder: &Path, part: Part) -> PathBuf {
    folder.join(format!("nats-{}.nk", part.as_str()))
}

/// The logins of what runs beside control, which are all there or none: in `named`, where that is no empty path, else in the data folder. None
/// where all are control's user.
pub(crate) fn part_nkey_files(named: &Path, data: &Path) -> anyhow::Result<BTreeMap<Part, PathBuf>> {
    let is_named = !named.as_os_str().is_empty();
    let folder = if is_named { named.to_owned() } else { keys_folder(data) };
    let files: BTreeMap<Part, PathBuf> = Part::ALL.into_iter().map(|part| (part, part_nkey_file(&folder, part))).collect();
    let missing: Vec<&str> = files.iter().filter(|(_, file)| !file.exists()).map(|(part, _)| part.as_str()).collect();
    if missing.is_empty() {
        return Ok(files);
    }
    if !is_named && missing.len() == files.len() {
        return Ok(BTreeMap::new());
    }
    bail!(
        "{} has no NATS login of {} (nats-ROLE.nk): `aegis streams users --data {}` makes those that are missing in the data folder; then reload the server",
        folder.display(),
        missing.join(", "),
        data.display()
    )
}

/// Makes the logins of control and of what runs beside it, where they are missing. True if control had its own before, and the others have theirs
/// only now: until its next start, control does with one user what the server will let it do no more.
pub(crate) fn make_logins(data: &Path) -> anyhow::Result<bool> {
    make_private_folder(&keys_folder(data))?;
    let control = control_nkey_file(data);
    let is_older = control.exists() && !part_nkey_file(&keys_folder(data), Part::Detect).exists();
    // Control's last: it stands for a folder that has all of them.
    for part in Part::ALL {
        load_or_create_nkey(&part_nkey_file(&keys_folder(data), part))?;
    }
    load_or_create_nkey(&control)?;
    Ok(is_older)
}

/// The server's users as this data folder knows them: `admin`, `control` and what runs beside it, whose logins are made where there are none yet, and
/// each edge with the login that it was enrolled with last. Where control has a login and the others have not, as folders of before, control's
/// user may what all may: it runs as that, and would stand still with less. `named`: as `part_nkey_files` has it.
pub(crate) async fn of(data: &Path, named: &Path, store: &Store) -> anyhow::Result<String> {
    if !control_nkey_file(data).exists() {
        make_logins(data)?;
    }
    let parts = part_nkey_files(named, data)?;
    let role = if parts.is_empty() { Role::Whole } else { Role::Control };
    let mut users = vec![
        User { role: Role::Admin, nkey: load_or_create_nkey(&admin_nkey_file(data))?.public_key() },
        User { role, nkey: load_or_create_nkey(&control_nkey_file(data))?.public_key() },
    ];
    for (part, file) in parts {
        users.push(User { role: Role::Part(part), nkey: load_or_create_nkey(&file)?.public_key() });
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use aegis_model::SystemClock;

    use super::*;

    async fn rendered(data: &Path) -> String {
        let store = Store::open(&data.join("control.db"), Arc::new(SystemClock)).await.unwrap();
        of(data, Path::new(""), &store).await.unwrap()
    }

    fn named(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.trim().strip_prefix("# ")?.split_once(':')).map(|(user, _)| user).collect()
    }

    #[tokio::test]
    async fn a_folder_without_logins_gets_one_for_each_role_that_its_owner_alone_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let text = rendered(folder.path()).await;
        let mut expected = vec!["admin", "control"];
        expected.extend(Part::ALL.map(Part::user));
        let mut users = named(&text);
        users.sort_unstable();
        expected.sort_unstable();
        assert_eq!(users, expected, "{text}");
        let files = part_nkey_files(Path::new(""), folder.path()).unwrap();
        assert_eq!(files.len(), Part::ALL.len());
        for file in files.values().chain([&control_nkey_file(folder.path())]) {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(rendered(folder.path()).await, text, "each keeps its login");
    }

    #[tokio::test]
    async fn a_folder_of_before_has_one_user_that_may_all_until_it_is_told() {
        let folder = tempfile::tempdir().unwrap();
        make_private_folder(&keys_folder(folder.path())).unwrap();
        let nkey = load_or_create_nkey(&control_nkey_file(folder.path())).unwrap().public_key();
        let text = rendered(folder.path()).await;
        assert_eq!(named(&text), ["admin", "control"]);
        assert!(text.contains("\"alert.>\"") && text.contains(&nkey), "{text}");
        assert!(part_nkey_files(Path::new(""), folder.path()).unwrap().is_empty());

        assert!(make_logins(folder.path()).unwrap());
        assert!(!make_logins(folder.path()).unwrap(), "it is told once");
        let text = rendered(folder.path()).await;
        assert_eq!(named(&text).len(), 2 + Part::ALL.len());
        assert!(text.contains(&nkey), "control keeps its login");
        let control = text.lines().skip_while(|line| !line.contains("# control:")).nth(2).unwrap();
        assert!(control.contains("$KV.control.>") && !control.contains("alert.>"), "{control}");
    }

    #[test]
    fn some_logins_are_an_error_that_names_the_others_and_what_makes_them() {
        let folder = tempfile::tempdir().unwrap();
        make_logins(folder.path()).unwrap();
        std::fs::remove_file(part_nkey_file(&keys_folder(folder.path()), Part::Lake)).unwrap();
        let error = part_nkey_files(Path::new(""), folder.path()).unwrap_err().to_string();
        assert!(error.contains("login of lake (") && error.contains("aegis streams users"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        part_nkey_files(empty.path(), folder.path()).unwrap_err();
        make_logins(folder.path()).unwrap();
        part_nkey_files(Path::new(""), folder.path()).unwrap();
        part_nkey_files(&keys_folder(folder.path()), empty.path()).unwrap();
    }
}
