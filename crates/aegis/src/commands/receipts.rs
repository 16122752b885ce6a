//! `aegis receipts export`: a tenant's evidence out of a data folder, also while `aegis up` runs on it.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use aegis_ledger::LedgerReader;
use aegis_model::TenantId;
use anyhow::{Context, bail};

/// Rows read at a time.
const PAGE: usize = 1000;

pub(crate) fn export(tenant: &str, data: &Path) -> anyhow::Result<ExitCode> {
    let tenant = TenantId::new(tenant).context("--tenant")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut out = BufWriter::new(std::io::stdout().lock());
        let (mut found, mut damaged) = (false, 0u64);
        for part in ["control", "edge"] {
            let path = data.join(part).join("ledger.db");
            if !path.exists() {
                continue;
            }
            found = true;
            let reader = LedgerReader::open(&path).await.with_context(|| path.display().to_string())?;
            let mut after_row = 0;
            loop {
                let page = reader.export(&tenant, after_row, PAGE).await?;
                let Some(last) = page.last() else { break };
                after_row = last.row;
                for line in &page {
                    damaged += u64::from(!line.is_sealed);
                    writeln!(out, "{}", line.text)?;
                }
            }
        }
        if !found {
            bail!("{} has no ledger; name the folder that `aegis up` runs on with --data", data.display());
        }
        out.flush()?;
        if damaged > 0 {
            eprintln!(
                "aegis: {damaged} receipts are damaged on the disk; lines with \"evidence\": \"damaged\" stand in their places"
            );
        }
        Ok(ExitCode::SUCCESS)
    })
}
