//! `aegis policy validate`: the check a bundle passes when it is loaded, for authors and for CI.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aegis_model::ToolRecord;
use aegis_policy::{PolicyBundle, PolicySource, default_pack, github_pack};
use anyhow::{Context, bail};

use super::SAID_NO;

pub(crate) fn validate(files: &[PathBuf], tools: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let sources = if files.is_empty() { vec![default_pack(), github_pack()] } else { read_sources(files)? };
    let tools = read_tools(tools)?;
    match PolicyBundle::load(&sources, &tools) {
        Ok(bundle) if json => {
            println!("{}", serde_json::json!({"valid": true, "digest": bundle.digest(), "files": sources.len()}));
            Ok(ExitCode::SUCCESS)
        }
        Ok(bundle) => {
            println!("valid: {} file(s), digest {}", sources.len(), bundle.digest());
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if json => {
            println!("{}", serde_json::json!({"valid": false, "error": error.to_string()}));
            Ok(ExitCode::from(SAID_NO))
        }
        Err(error) => {
            eprintln!("{error}");
            Ok(ExitCode::from(SAID_NO))
        }
    }
}

/// Reads policy files; a file's name stands in what is said about it.
pub(crate) fn read_sources(files: &[PathBuf]) -> anyhow::Result<Vec<PolicySource>> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(PolicySource { name: path.display().to_string(), text })
    };
    files.iter().map(read).collect()
}

/// Reads registered tools; none where no file was given.
pub(crate) fn read_tools(file: Option<&Path>) -> anyhow::Result<Vec<ToolRecord>> {
    let Some(path) = file else { return Ok(Vec::new()) };
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not an array of tools", path.display()))
}

/// The shipped packs, or all `.cedar` files of a folder, by name.
pub(crate) fn read_packs(folder: &Path) -> anyhow::Result<Vec<PolicySource>> {
    if folder.as_os_str().is_empty() {
        return Ok(vec![default_pack(), github_pack()]);
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read the policies folder {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cedar"))
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("the policies folder {} has no .cedar file; without a policy nothing could ever be allowed", folder.display());
    }
    read_sources(&files)
}
