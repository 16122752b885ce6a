//! `aegis sql`: one read-only query over a tenant's rows of the lake, also while the program writes it.

use std::io::Read;
use std::process::ExitCode;

use aegis_lake::{Bounds, query, tenants};
use aegis_model::TenantId;
use anyhow::{Context, bail};

use crate::arguments::rules::SqlArgs;

/// Longest query from standard input, bytes.
const MAX_QUERY: u64 = 1 << 20;

pub(crate) fn sql(args: &SqlArgs) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    let done = runtime.block_on(run(args));
    // A query that was given up may be in the middle of something: nobody waits for it.
    runtime.shutdown_background();
    done
}

async fn run(args: &SqlArgs) -> anyhow::Result<ExitCode> {
    let text = if args.query == "-" { from_stdin()? } else { args.query.clone() };
    let store = crate::lake::find(args.config.as_deref(), &args.data)?;
    let tenant = match &args.tenant {
        Some(tenant) => TenantId::new(tenant).context("--tenant")?,
        None => {
            let there: Vec<TenantId> = tenants(&store).await?.into_iter().collect();
            match there.as_slice() {
                [] => bail!("the lake has no rows yet"),
                [only] => only.clone(),
                _ => bail!("the lake has rows of {} tenants; name one with --tenant", there.len()),
            }
        }
    };
    let bounds = Bounds { rows: args.limit, seconds: args.seconds, ..Bounds::default() };
    let mut answer = query(store, &tenant, &text, bounds).await?;
    if args.json {
        answer.write_lines(std::io::BufWriter::new(std::io::stdout().lock())).await?;
    } else {
        let table = answer.read_table().await?;
        println!("{}\n{} {}", table.text, table.rows, if table.rows == 1 { "row" } else { "rows" });
    }
    if answer.is_cut() {
        eprintln!("aegis: there are more rows than these {}; --limit takes more", args.limit);
    }
    Ok(ExitCode::SUCCESS)
}

fn from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_QUERY + 1).read_to_string(&mut text).context("cannot read standard input")?;
    if text.len() as u64 > MAX_QUERY {
        bail!("the query is longer than {MAX_QUERY} bytes");
    }
    Ok(text)
}
