//! `aegis edge invite` on control's folder, `aegis edge enroll` on the edge's.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use super::runtime;

/// Longest invitation read from standard input, bytes.
const MAX_TOKEN: u64 = 4096;

#[cfg(feature = "control")]
pub(crate) fn invite(args: &crate::arguments::running::InviteArgs) -> anyhow::Result<ExitCode> {
    use aegis_model::{Clock, SystemClock, TenantId};
    use anyhow::bail;
    use std::sync::Arc;

    let tenants = args.tenants.iter().map(|tenant| TenantId::new(tenant).with_context(|| format!("--tenant {tenant}")));
    let tenants = tenants.collect::<Result<_, _>>()?;
    if args.ttl_s < 1 {
        bail!("--ttl-s must be 1 or more seconds");
    }
    if !args.data.is_dir() {
        bail!("there is no data folder {}; start `aegis control` once, or name it with --data", args.data.display());
    }
    let token = runtime()?.block_on(async {
        let clock = Arc::new(SystemClock);
        let store = crate::store::open_beside(&args.data, clock.clone()).await?;
        let token = store.invite_edge(&args.id, &tenants, clock.now().plus_seconds(args.ttl_s)).await?;
        anyhow::Ok(token)
    })?;
    println!("{}", token.expose());
    eprintln!("invitation of edge {} for {} s; it is not shown again, and used once", args.id, args.ttl_s);
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn enroll(control: &str, data: &Path) -> anyhow::Result<ExitCode> {
    let mut token = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_TOKEN)
        .read_to_string(&mut token)
        .context("cannot read the invitation from standard input")?;
    let enrolled = runtime()?.block_on(crate::enrolled::enroll(data, control, token.trim()))?;
    let tenants: Vec<&str> = enrolled.tenants.iter().map(aegis_model::TenantId::as_str).collect();
    println!(
        "edge {} is enrolled for {}; run it with: aegis edge --data {}",
        enrolled.edge_id,
        tenants.join(", "),
        data.display()
    );
    Ok(ExitCode::SUCCESS)
}
