//! `aegis streams`: the NATS server's streams and buckets, compared with the files that this program was built with, and made so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aegis_bus::definitions::{Change, Difference, Planned, Settings, wanted};
use aegis_bus::{BusError, JetStreamBus, JetStreamOptions, Login, Servers};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::SAID_NO;
use crate::nats::NatsArgs;

/// `aegis streams plan` and `apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct StreamsArgs {
    #[command(flatten)]
    nats: NatsArgs,
    /// Control's data folder: log in as `admin`, whose login `aegis streams users` made there
    #[arg(long, value_name = "DIR", conflicts_with = "nkey")]
    data: Option<PathBuf>,
    /// Copies of every stream in a cluster, 1 to 5 [default: 1]
    #[arg(long, value_name = "N")]
    replicas: Option<usize>,
    /// Most bytes of a stream, e.g. ASE=64GiB; repeatable
    #[arg(long = "max-bytes", value_name = "STREAM=SIZE", value_parser = size_of_stream)]
    max_bytes: Vec<(String, u64)>,
    /// How long a stream keeps a message, e.g. APPROVALS=2d; 0 for ever; repeatable
    #[arg(long = "max-age", value_name = "STREAM=TIME", value_parser = age_of_stream)]
    max_age: Vec<(String, u64)>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// `SIZE` in bytes, or with a unit.
fn size_of_stream(text: &str) -> Result<(String, u64), String> {
    of_stream(text, &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)])
}

/// `TIME` in seconds, or with a unit.
fn age_of_stream(text: &str) -> Result<(String, u64), String> {
    of_stream(text, &[("s", 1), ("m", 60), ("h", 3600), ("d", 86400)])
}

fn of_stream(text: &str, units: &[(&str, u64)]) -> Result<(String, u64), String> {
    let (stream, amount) = text.split_once('=').ok_or_else(|| "it must be STREAM=AMOUNT".to_owned())?;
    let unit = units.iter().find_map(|(unit, factor)| amount.strip_suffix(unit).map(|number| (number, *factor)));
    let (number, factor) = unit.unwrap_or((amount, 1));
    let number: u64 = number.parse().map_err(|_| {
        let units: Vec<&str> = units.iter().map(|(unit, _)| *unit).collect();
        format!("`{amount}` is not a whole number, alone or with one of {}", units.join(", "))
    })?;
    let amount = number.checked_mul(factor).ok_or_else(|| format!("`{amount}` is too much"))?;
    Ok((stream.to_owned(), amount))
}

impl StreamsArgs {
    fn settings(&self) -> Settings {
        Settings {
            replicas: self.replicas,
            max_bytes: self.max_bytes.iter().cloned().collect::<BTreeMap<_, _>>(),
            max_age_s: self.max_age.iter().cloned().collect(),
        }
    }

    fn options(&self) -> anyhow::Result<JetStreamOptions> {
        let mut options = self.nats.options("aegis-streams")?;
        if let Some(data) = &self.data {
            let seed = crate::nats::read_seed(&crate::nats::admin_nkey_file(data))?;
            options.login = Login::Nkey { seed };
            options.inbox_prefix = aegis_bus::users::inbox_prefix("admin");
        }
        if options.servers.is_empty() {
            bail!("name a NATS server with --nats, e.g. --nats nats://127.0.0.1:4222");
        }
        Ok(options)
    }
}

/// A file with the server's users, and those of whom it says something else than `aegis streams users` would now.
struct UsersFile<'a> {
    file: &'a Path,
    differ: Vec<String>,
}

/// Shows what would change; exit 1 if anything would. `users`: the file that the server includes.
pub(crate) fn plan(args: &StreamsArgs, users: Option<&Path>) -> anyhow::Result<ExitCode> {
    let wanted = wanted(&args.settings())?;
    let options = args.options()?;
    let users =
        users.map(|file| Ok::<_, anyhow::Error>(UsersFile { file, differ: users_that_differ(args, file)? })).transpose()?;
    let planned = super::runtime()?.block_on(async {
        let bus = JetStreamBus::connect(&options).await?;
        Ok::<_, BusError>((bus.find_servers().await?, bus.plan_streams(&wanted).await?))
    });
    let (servers, plan) = planned.with_context(|| format!("the streams of {}", options.servers.join(", ")))?;
    let differs =
        plan.iter().any(|planned| planned.change != Change::None) || users.as_ref().is_some_and(|users| !users.differ.is_empty());
    show(&servers, &plan, users.as_ref(), args.json, false);
    if !args.json && args.data.is_some() {
        show_users(users.as_ref());
    }
    Ok(if differs { ExitCode::from(SAID_NO) } else { ExitCode::SUCCESS })
}

/// Makes the server's streams as they should be.
pub(crate) fn apply(args: &StreamsArgs, may_lose: &[String]) -> anyhow::Result<ExitCode> {
    let wanted = wanted(&args.settings())?;
    let options = args.options()?;
    let applied = super::runtime()?.block_on(async {
        let bus = JetStreamBus::connect(&options).await?;
        Ok::<_, BusError>((bus.find_servers().await?, bus.apply_streams(&wanted, may_lose).await?))
    });
    let (servers, done) = applied.with_context(|| format!("the streams of {}", options.servers.join(", ")))?;
    show(&servers, &done, None, args.json, true);
    Ok(ExitCode::SUCCESS)
}

/// Prints the server's users, or writes them to a file.
#[cfg(feature = "control")]
pub(crate) fn users(data: &Path, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    crate::parts::make_private_folder(data)?;
    if crate::users::make_logins(data)? {
        eprintln!(
            "aegis: each role has a login of its own now. Write these users where the NATS server reads them, restart it or reload it twice, and restart \
             the control plane: as long as it runs with one user, the server refuses what that may no more"
        );
    }
    let text = users_of(data)?;
    match file {
        Some(file) => crate::users::write(file, &text)?,
        None => print!("{text}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The server's users as the data folder knows them now.
#[cfg(feature = "control")]
fn users_of(data: &Path) -> anyhow::Result<String> {
    super::runtime()?.block_on(async {
        let clock = std::sync::Arc::new(aegis_model::SystemClock);
        let store = crate::store::open_beside(data, clock).await?;
        crate::users::of(data, Path::new(""), &store).await
    })
}

#[cfg(feature = "control")]
fn users_that_differ(args: &StreamsArgs, file: &Path) -> anyhow::Result<Vec<String>> {
    let data = args.data.as_deref().context("--users takes --data: the folder whose control plane knows the users")?;
    // Else they would be made, by a command that changes nothing.
    if !crate::users::control_nkey_file(data).exists() {
        bail!("{} has no logins of a NATS server; `aegis streams users` makes them", data.display());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(differing(&text, &users_of(data)?))
}

#[cfg(not(feature = "control"))]
fn users_that_differ(_args: &StreamsArgs, _file: &Path) -> anyhow::Result<Vec<String>> {
    bail!("only a program with a control plane knows the users")
}

/// What of a users file is about no user. No user has such a name.
#[cfg(feature = "control")]
const ACCOUNTS: &str = "(accounts)";

/// The users of whom two files say something else.
#[cfg(feature = "control")]
fn differing(one: &str, other: &str) -> Vec<String> {
    let (one, other) = (users_in(one), users_in(other));
    let names: std::collections::BTreeSet<&str> = one.keys().chain(other.keys()).copied().collect();
    names.into_iter().filter(|name| one.get(name) != other.get(name)).map(str::to_owned).collect()
}

/// What a users file says, by user: from the comment that names it to the end of its account, or to the next.
#[cfg(feature = "control")]
fn users_in(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut users: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut user = ACCOUNTS;
    for line in text.lines() {
        if let Some((id, _)) = line.strip_prefix("      # ").and_then(|named| named.split_once(": ")) {
            user = id;
        } else if line.starts_with("  }") {
            user = ACCOUNTS;
        }
        users.entry(user).or_default().push(line);
    }
    users
}

fn show_users(users: Option<&UsersFile<'_>>) {
    match users {
        Some(UsersFile { file, differ }) if differ.is_empty() => {
            println!(
                "{:<16} as they should be in {}; whether the server has read it since, it does not tell",
                "users",
                file.display()
            );
        }
        Some(UsersFile { file, differ }) => println!(
            "{:<16} {} is not what `aegis streams users` writes now, of {}: write it again, and reload the server",
            "users",
            file.display(),
            differ.join(", ")
        ),
        None => println!("{:<16} not compared: name the file that the server includes with --users", "users"),
    }
}

fn show(servers: &Servers, plan: &[Planned], users: Option<&UsersFile<'_>>, as_json: bool, done: bool) {
    if as_json {
        let users = users.map(|users| json!({ "file": users.file.display().to_string(), "differ": users.differ }));
        println!("{}", json!({ "servers": servers, "streams": plan, "users": users }));
        return;
    }
    println!("{servers}");
    for Planned { name, change } in plan {
        match change {
            Change::Create => println!("{name:<16} {}", if done { "created" } else { "to be created" }),
            Change::None => println!("{name:<16} as it should be"),
            Change::Update { differences } => {
                println!("{name:<16} {}", if done { "changed" } else { "to be changed" });
                differences.iter().for_each(show_difference);
            }
        }
    }
}

fn show_difference(difference: &Difference) {
    let Difference { field, server, wanted, loses } = difference;
    let text = |value: &Value| if value.is_null() { "nothing".to_owned() } else { value.to_string() };
    let loses = loses.as_ref().map(|loses| format!("   LOSES {loses}")).unwrap_or_default();
    println!("{:<16}   {field}: {} -> {}{loses}", "", text(server), text(wanted));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        assert_eq!(size_of_stream("ASE=64GiB").unwrap(), ("ASE".to_owned(), 64 << 30));
        assert_eq!(size_of_stream("ASE=7").unwrap().1, 7);
        assert_eq!(age_of_stream("APPROVALS=2d").unwrap().1, 172_800);
        assert_eq!(age_of_stream("APPROVALS=0").unwrap().1, 0);
        for bad in ["ASE", "ASE=", "ASE=GiB", "ASE=-1", "ASE=1GB", "ASE=99999999999TiB"] {
            size_of_stream(bad).unwrap_err();
        }
    }
    #[cfg(feature = "control")]
    #[test]
    fn a_users_file_that_is_stale_or_wider_is_told_by_user() {
        use aegis_bus::users::{Part, Role, User, render};
        let edge = |id: &str, tenants: &[&str]| Role::Edge {
            id: id.to_owned(),
            tenants: tenants.iter().map(|tenant| aegis_model::TenantId::new(tenant).unwrap()).collect(),
        };
        let file = |roles: Vec<Role>| {
            let numbered = roles.into_iter().enumerate();
            let user = |(n, role): (usize, Role)| User { role, nkey: format!("U{}", ["A", "B", "C", "D"][n].repeat(55)) };
            render(&numbered.map(user).collect::<Vec<_>>()).unwrap()
        };
        let inside = || vec![Role::Admin, Role::Control, Role::Part(Part::Detect)];
        let with = |role: Role| file(inside().into_iter().chain([role]).collect());
        let wanted = with(edge("edge-1", &["acme"]));
        assert!(differing(&wanted, &wanted).is_empty());
        // Enrolled, and not in the server's file yet.
        assert_eq!(differing(&file(inside()), &wanted), ["(accounts)", "edge-1"]);
        assert_eq!(differing(&with(edge("edge-1", &["acme", "beta"])), &wanted), ["edge-1"]);
        let all_in_one = file(vec![Role::Admin, Role::Whole, Role::Part(Part::Detect), edge("edge-1", &["acme"])]);
        assert_eq!(differing(&all_in_one, &wanted), ["control"]);
        let wider = wanted.replacen("\"$JS.API.STREAM.LIST\"", "\">\"", 1);
        assert_eq!(differing(&wider, &wanted), ["admin"]);
        let another_login = wanted.replace(&"C".repeat(55), &"D".repeat(55));
        assert_eq!(differing(&another_login, &wanted), ["soc.detect"]);
        assert_eq!(differing("", &wanted), ["(accounts)", "admin", "control", "edge-1", "soc.detect"]);
    }
}
