//! Where the lake lies: a folder in the data folder, or a bucket; and the key to that, which comes from the environment or a private file.

use std::path::Path;
use std::sync::Arc;

use aegis_lake::{AccessKey, Folder, KeySource, Lake, S3Settings, open_s3};
use anyhow::{Context, bail};

use crate::config::LakeSection;
use crate::parts::{make_private_folder, read_private};

/// The lake's folder in the data folder.
const FOLDER: &str = "lake";

/// Variables with the key, as other programs have them.
const ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
const TOKEN: &str = "AWS_SESSION_TOKEN";

/// The lake that a program writes; its folder is made where it is missing.
pub(crate) fn open(section: &LakeSection, data: &Path) -> anyhow::Result<Lake> {
    let folder = data.join(FOLDER);
    if section.url.is_empty() {
        make_private_folder(&folder)?;
        return Folder::open(&folder).context("the lake");
    }
    if folder.is_dir() {
        tracing::warn!(
            folder = %folder.display(),
            url = section.url,
            "the lake is on S3; the folder of an earlier one is neither read nor kept up"
        );
    }
    in_bucket(section)
}

/// The same lake once more, for who reads it on a thread of its own.
pub(crate) fn open_again(section: &LakeSection, data: &Path) -> anyhow::Result<Lake> {
    if section.url.is_empty() { Folder::open(&data.join(FOLDER)).context("the lake") } else { in_bucket(section) }
}

/// The lake that a command reads: that of the configuration or the environment where they name a bucket, else the data folder's, which must be there.
pub(crate) fn find(config: Option<&Path>, data: &Path) -> anyhow::Result<Lake> {
    let section = LakeSection::load(config)?;
    if !section.url.is_empty() {
        return in_bucket(&section);
    }
    let folder = data.join(FOLDER);
    if !folder.is_dir() {
        bail!(
            "there is no lake in {}; name the folder that `aegis up` or `aegis control` runs on with --data, or its configuration with --config \
             where the lake is on S3",
            data.display()
        );
    }
    Folder::open(&folder).context("the lake")
}

fn in_bucket(section: &LakeSection) -> anyhow::Result<Lake> {
    let settings = S3Settings {
        url: section.url.clone(),
        endpoint: section.endpoint.clone(),
        region: section.region.clone(),
        path_style: section.path_style,
        http_host: section.http_host.clone(),
    };
    open_s3(&settings, key_source(section)).context("the lake")
}

fn key_source(section: &LakeSection) -> KeySource {
    let file = section.credentials_file.clone();
    if file.as_os_str().is_empty() {
        return Arc::new(|| key_of(|name| std::env::var(name).ok()));
    }
    Arc::new(move || {
        let text = read_private(&file).map_err(|error| format!("lake.credentials_file: {error:#}"))?;
        key_in(&text).map_err(|what| format!("lake.credentials_file: {}: {what}", file.display()))
    })
}

fn key_of(variable: impl Fn(&str) -> Option<String>) -> Result<AccessKey, String> {
    let value = |name: &str| variable(name).filter(|value| !value.is_empty());
    match (value(ID), value(SECRET)) {
        (Some(id), Some(secret)) => Ok(AccessKey { id, secret, token: value(TOKEN) }),
        _ => Err(format!(
            "there is no key for the bucket of lake.url: set the variables {ID} and {SECRET}, or name a file with it as lake.credentials_file"
        )),
    }
}

/// The key in a text as AWS's tools write it: `name = value` lines, of the profile `default`. What is wrong is told by its line, and never repeated.
fn key_in(text: &str) -> Result<AccessKey, String> {
    let (mut id, mut secret, mut token) = (None, None, None);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) || line == "[default]" {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| format!("line {number} is not `name = value`"))?;
        let place = match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => &mut id,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => {
                let known = "aws_access_key_id, aws_secret_access_key and aws_session_token";
                return Err(format!("line {number} names something else than {known}"));
            }
        };
        let value = value.trim();
        if value.is_empty() || place.replace(value.to_owned()).is_some() {
            return Err(format!("line {number} has no value, or one that a line before it has"));
        }
    }
    match (id, secret) {
        (Some(id), Some(secret)) => Ok(AccessKey { id, secret, token }),
        _ => Err("it wants aws_access_key_id and aws_secret_access_key".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_comes_from_the_environment_whole_or_not_at_all() {
        let of = |variables: &[(&str, &str)]| {
            key_of(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        let key = of(&[(ID, "AKID"), (SECRET, "s"), (TOKEN, "t")]).unwrap();
        assert_eq!((key.id.as_str(), key.secret.as_str(), key.token.as_deref()), ("AKID", "s", Some("t")));
        assert_eq!(of(&[(ID, "AKID"), (SECRET, "s"), (TOKEN, "")]).unwrap().token, None);
        for missing in [&[][..], &[(ID, "AKID")], &[(SECRET, "the secret")], &[(ID, ""), (SECRET, "the secret")]] {
            let error = of(missing).unwrap_err();
            assert!(error.contains(ID) && !error.contains("the secret"), "{error}");
        }
    }

    #[test]
    fn a_key_comes_from_a_file_as_aws_s_tools_write_it() {
        let key = key_in("# of the lake\n[default]\nAWS_ACCESS_KEY_ID=AKID\naws_secret_access_key = s/e+c=\n\n").unwrap();
        assert_eq!((key.id.as_str(), key.secret.as_str(), key.token), ("AKID", "s/e+c=", None));
        let whole = "aws_access_key_id = a\naws_secret_access_key = the-secret\n";
        for wrong in [
            "",
            "aws_access_key_id = a\n",
            "aws_access_key_id = a\naws_secret_access_key =\n",
            "[prod]\naws_access_key_id = a\n",
            &format!("{whole}aws_secret_access_key = the-secret\n"),
            &format!("{whole}the-secret\n"),
            &format!("{whole}the-secret = 1\n"),
        ] {
            let error = key_in(wrong).unwrap_err();
            assert!(!error.contains("the-secret"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_gives_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "aws_access_key_id = a\naws_secret_access_key = the-secret\n").unwrap();
        let source = key_source(&LakeSection { credentials_file: file.clone(), ..LakeSection::default() });
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = source().unwrap_err();
        assert!(error.contains("chmod 600") && !error.contains("the-secret"), "{error}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(source().unwrap().id, "a");
    }
}
