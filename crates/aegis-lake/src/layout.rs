//! Where an event's row lies: `tenant=<id>/date=YYYY-MM-DD/hour=HH/`, by the event's own time.
//! Promises that different tenants have different folders, none below another's; a tenant's id cannot hold what a path gives a meaning to.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::bounds::Span;
use crate::error::LakeError;

const MICROS_PER_HOUR: i64 = 3_600_000_000;
/// The first hour of the year 1 and the last of the year 9999, from the epoch: what a date of four digits can say.
const FIRST_HOUR: i64 = -17_259_888;
const LAST_HOUR: i64 = 70_389_527;
/// How far from the time at which the bus stored it an event's own time may be that proves nothing, microseconds: behind, and ahead.
const MOST_BEHIND: i64 = 24 * MICROS_PER_HOUR;
const MOST_AHEAD: i64 = MICROS_PER_HOUR;
/// The folder of events that are further away.
const ASTRAY: &str = "astray";

/// One hour of one tenant: a folder of files with one manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour {
    tenant: TenantId,
    slot: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Slot {
    /// Hours since the epoch.
    At(i64),
    /// Of what did not prove itself and claims a time far from that of the bus: else one sender could open a folder for each hour that there ever was.
    Astray,
}

impl Hour {
    /// Where an event belongs.
    #[must_use]
    pub fn of(event: &SecurityEvent) -> Self {
        let hour = event.ts.as_micros().div_euclid(MICROS_PER_HOUR);
        let bus_ts = event.bus_ts.unwrap_or(event.ts);
        let is_near = event.ts >= bus_ts.plus_micros(-MOST_BEHIND) && event.ts <= bus_ts.plus_micros(MOST_AHEAD);
        let is_sayable = (FIRST_HOUR..=LAST_HOUR).contains(&hour);
        let slot = if is_sayable && (event.verified || is_near) { Slot::At(hour) } else { Slot::Astray };
        Self { tenant: event.tenant_id.clone(), slot }
    }

    /// Whose it is.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// True if it may have rows of these times.
    #[must_use]
    pub fn meets(&self, span: Span) -> bool {
        match self.slot {
            Slot::At(hour) => span.meets(hour * MICROS_PER_HOUR, hour * MICROS_PER_HOUR + MICROS_PER_HOUR - 1),
            Slot::Astray => true,
        }
    }

    /// When it begins, microseconds since the epoch. None for what is astray.
    pub(crate) fn start(&self) -> Option<i64> {
        match self.slot {
            Slot::At(hour) => Some(hour * MICROS_PER_HOUR),
            Slot::Astray => None,
        }
    }

    /// When it is over. None for what is astray.
    pub(crate) fn end(&self) -> Option<Timestamp> {
        match self.slot {
            Slot::At(hour) => Some(Timestamp::from_micros((hour + 1) * MICROS_PER_HOUR)),
            Slot::Astray => None,
        }
    }

    /// The folder, without a slash at its end.
    #[must_use]
    pub fn folder(&self) -> String {
        let tenant = folder_of(&self.tenant);
        match self.slot {
            Slot::At(hour) => {
                let time = Timestamp::from_micros(hour * MICROS_PER_HOUR).to_rfc3339();
                let (date, time) = time.split_once('T').unwrap_or((&time, "00"));
                format!("{tenant}/date={date}/hour={}", time.get(..2).unwrap_or("00"))
            }
            Slot::Astray => format!("{tenant}/{ASTRAY}"),
        }
    }

    /// The hour that a folder is. None for any other text.
    #[must_use]
    pub fn parse(folder: &str) -> Option<Self> {
        let mut parts = folder.split('/');
        let tenant = TenantId::new(parts.next()?.strip_prefix("tenant=")?).ok()?;
        let second = parts.next()?;
        let slot = if second == ASTRAY {
            Slot::Astray
        } else {
            let (date, hour) = (second.strip_prefix("date=")?, parts.next()?.strip_prefix("hour=")?);
            let time = Timestamp::parse_rfc3339(&format!("{date}T{hour}:00:00Z")).ok()?;
            Slot::At(time.as_micros().div_euclid(MICROS_PER_HOUR))
        };
        let found = Self { tenant, slot };
        (found.folder() == folder).then_some(found)
    }

    /// One of its objects.
    pub(crate) fn object(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.folder()))
    }
}

fn folder_of(tenant: &TenantId) -> String {
    format!("tenant={tenant}")
}

/// The tenants that have rows.
pub async fn tenants(store: &Arc<dyn ObjectStore>) -> Result<BTreeSet<TenantId>, LakeError> {
    let folders = store.list_with_delimiter(None).await?.common_prefixes;
    Ok(folders.iter().filter_map(|folder| TenantId::new(folder.to_string().strip_prefix("tenant=")?).ok()).collect())
}

/// The hours of one tenant, ascending, as far as they have rows.
pub(crate) async fn hours(store: &Arc<dyn ObjectStore>, tenant: &TenantId) -> Result<BTreeSet<Hour>, LakeError> {
    let mut hours = BTreeSet::new();
    for folder in store.list_with_delimiter(Some(&Path::from(folder_of(tenant)))).await?.common_prefixes {
        if let Some(astray) = Hour::parse(folder.as_ref()) {
            hours.insert(astray);
            continue;
        }
        let of_date = store.list_with_delimiter(Some(&folder)).await?.common_prefixes;
        hours.extend(of_date.iter().filter_map(|folder| Hour::parse(folder.as_ref())));
    }
    hours.retain(|hour| hour.tenant == *tenant);
    Ok(hours)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::EventKind;
    use proptest::prelude::*;

    fn event(tenant: &TenantId, ts: i64, bus_ts: i64, verified: bool) -> SecurityEvent {
        let ts = Timestamp::from_micros(ts);
        let mut event = SecurityEvent::new(tenant.clone(), "e", "edge", EventKind::AuthorizeDecision, ts);
        (event.bus_ts, event.verified) = (Some(Timestamp::from_micros(bus_ts)), verified);
        event
    }

    proptest! {
        #[test]
        fn no_tenants_rows_lie_in_anothers_folder(a in "\\PC{0,70}|[a-z0-9_-]{1,64}|[./=%a]{1,8}", b in "[a-z0-9_-]{1,64}", ts in any::<i64>(), bus_ts in any::<i64>(), verified: bool) {
            let Ok(a) = TenantId::new(&a) else { return Ok(()) };
            let b = TenantId::new(&b).unwrap();
            let (of_a, of_b) = (Hour::of(&event(&a, ts, bus_ts, verified)), Hour::of(&event(&b, ts, bus_ts, verified)));
            for hour in [&of_a, &of_b] {
                let path = hour.object("x.parquet");
                let path = path.to_string();
                let parts: Vec<&str> = path.split('/').collect();
                prop_assert_eq!(parts[0], folder_of(hour.tenant()));
                prop_assert!(parts.len() == 3 || parts.len() == 4);
                prop_assert!(parts.iter().all(|part| *part != ".." && *part != "."));
                // What is written is what is found again.
                prop_assert_eq!(Hour::parse(&hour.folder()), Some(hour.clone()));
                prop_assert_eq!(path, format!("{}/x.parquet", hour.folder()));
            }
            prop_assert_eq!(a == b, of_a.folder() == of_b.folder());
        }

        #[test]
        fn an_hour_has_the_times_of_its_events(ts in any::<i64>(), bus_ts in any::<i64>(), verified: bool) {
            let hour = Hour::of(&event(&TenantId::new("t").unwrap(), ts, bus_ts, verified));
            let at = Span { from: ts, to: ts };
            prop_assert!(hour.meets(at));
        }
    }

    #[test]
    fn a_folder_says_date_and_hour_of_the_event() {
        let tenant = TenantId::new("acme").unwrap();
        let at = |text: &str| Timestamp::parse_rfc3339(text).unwrap().as_micros();
        let folder = |ts: i64, bus_ts: i64, verified: bool| Hour::of(&event(&tenant, ts, bus_ts, verified)).folder();
        let now = at("2026-11-26T20:59:59.999999Z");
        assert_eq!(folder(now, now, false), "tenant=acme/date=2026-11-26/hour=20");
        assert_eq!(folder(now + 1, now, false), "tenant=acme/date=2026-11-26/hour=21");
        assert_eq!(folder(-1, -1, false), "tenant=acme/date=1969-12-31/hour=23");
        // Who proves nothing chooses no folder of another day; who proves itself may come late.
        assert_eq!(folder(0, now, false), "tenant=acme/astray");
        assert_eq!(folder(0, now, true), "tenant=acme/date=1970-01-01/hour=00");
        assert_eq!(folder(i64::MAX, now, true), "tenant=acme/astray");
        for other in ["tenant=acme", "tenant=acme/date=2026-11-26", "tenant=acme/date=2026-11-26/hour=2", "tenant=A/astray", "x"]
        {
            assert_eq!(Hour::parse(other), None, "{other}");
        }
    }
}
