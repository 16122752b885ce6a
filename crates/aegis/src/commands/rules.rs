//! `aegis rules lint|test|schema`: what an author, and an author's editor, run before anything else.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aegis_detect::{HEADER_SCHEMA, LintReport, RuleError, RuleSet, lint_file, lint_shipped};
use anyhow::Context;
use serde_json::{Value, json};

use super::SAID_NO;

pub(crate) fn test(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let report = aegis_detect::testing::run_rule_tests(path)?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitCode::from(SAID_NO) })
}

pub(crate) fn lint(path: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let results: Vec<(PathBuf, Result<LintReport, RuleError>)> = match path {
        Some(path) => rule_files(path)?.into_iter().map(|file| (file.clone(), lint_file(&file))).collect(),
        None if json => lint_shipped(),
        None => {
            let rules = RuleSet::shipped()?;
            println!("{} shipped rules are in order", rules.len());
            return Ok(ExitCode::SUCCESS);
        }
    };
    let failed = results.iter().filter(|(_, result)| result.is_err()).count();
    if json {
        let findings: Vec<_> = results
            .iter()
            .map(|(file, result)| match result {
                Ok(report) => json!({"file": file, "ok": true, "report": report}),
                Err(error) => json!({"file": file, "ok": false, "error": error.to_string(), "finding": finding(error)}),
            })
            .collect();
        println!("{}", json!({"ok": failed == 0, "files": findings}));
    } else {
        for (file, result) in &results {
            match result {
                Ok(report) => println!("ok    {} {} v{}", file.display(), report.rule.header.id, report.rule.header.version),
                Err(error) => println!("FAIL  {error}"),
            }
        }
        println!("{} files, {failed} with findings", results.len());
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(SAID_NO) })
}

/// What the text of a finding says, for a program: where something is not said, null.
fn finding(error: &RuleError) -> Value {
    let (line, column) = (error.place.map(|place| place.line), error.place.map(|place| place.column));
    json!({"code": error.code, "line": line, "column": column, "message": error.message, "hint": error.hint})
}

/// The JSON Schema of a rule's header.
pub(crate) fn schema() -> anyhow::Result<ExitCode> {
    std::io::stdout().lock().write_all(HEADER_SCHEMA.as_bytes()).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// The rule files that a path names: itself, its `rule.sql`, or those of its folders.
pub(super) fn rule_files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let own = path.join("rule.sql");
    if own.is_file() {
        return Ok(vec![own]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path().join("rule.sql"))).filter(|file| file.is_file()).collect();
    files.sort();
    anyhow::ensure!(!files.is_empty(), "{} has no rule.sql and no folder with one", path.display());
    Ok(files)
}
