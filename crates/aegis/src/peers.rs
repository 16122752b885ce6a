//! How many connections each peer has: one that opens thousands takes its own part of the listener's, and no other's. Promises that who comes
//! by the loopback is never refused: behind a proxy there stands everybody, and agents beside the program have one address all together.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often it is told at most that a peer was refused.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How many peers' parts a site of the sixth version has, a /48, in which there are 65,536 networks: who has one is not all of them.
const PARTS_OF_A_SITE: u32 = 2;

/// Whose a connection counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Peer {
    Address(Ipv4Addr),
    /// A /64, which one machine has to itself mostly.
    Network(u64),
    Site(u64),
}

impl Peer {
    /// It, and the site in which it is.
    fn and_site(self) -> impl Iterator<Item = Self> {
        let site = match self {
            Self::Network(network) => Some(Self::Site(network >> 16)),
            Self::Address(_) | Self::Site(_) => None,
        };
        [self].into_iter().chain(site)
    }
}

/// The connections of a listener, by peer.
#[derive(Debug)]
pub(crate) struct Peers {
    /// Most connections of one peer; 0: as many as the listener has.
    most: u32,
    /// Of each peer that has any, how many; what has ended since the last was taken is still in it.
    taken: HashMap<Peer, u32>,
    ended: mpsc::UnboundedReceiver<Peer>,
    /// No longer than the listener has connections: it is emptied before each further one.
    ends: mpsc::UnboundedSender<Peer>,
    refused: Counter,
    told: Option<Instant>,
}

/// A place that a connection has until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    /// None where nobody counts.
    peer: Option<Peer>,
    ends: mpsc::UnboundedSender<Peer>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(peer) = self.peer {
            // Nobody asks any more once the listener has ended.
            let _listener_is_gone = self.ends.send(peer);
        }
    }
}

impl Peers {
    pub(crate) fn new(most: u32, registry: &mut Registry) -> Self {
        let refused: Counter = Counter::default();
        let help = "connections that were closed because their peer had as many as it may";
        registry.register("aegis_connections_refused", help, refused.clone());
        let (ends, ended) = mpsc::unbounded_channel();
        Self { most, taken: HashMap::new(), ended, ends, refused, told: None }
    }

    /// A place for a connection from an address; None where its peer has as many as it may.
    pub(crate) fn take(&mut self, from: IpAddr) -> Option<Place> {
        while let Ok(peer) = self.ended.try_recv() {
            self.give_back(peer);
        }
        let peer = peer_of(from).filter(|_| self.most > 0);
        if let Some(peer) = peer {
            if peer.and_site().any(|whose| self.has_all(whose)) {
                self.refuse(from);
                return None;
            }
            for whose in peer.and_site() {
                *self.taken.entry(whose).or_default() += 1;
            }
        }
        Some(Place { peer, ends: self.ends.clone() })
    }

    fn has_all(&self, whose: Peer) -> bool {
        let most = if matches!(whose, Peer::Site(_)) { self.most.saturating_mul(PARTS_OF_A_SITE) } else { self.most };
        self.taken.get(&whose).is_some_and(|count| *count >= most)
    }

    fn give_back(&mut self, peer: Peer) {
        for whose in peer.and_site() {
            let Some(count) = self.taken.get_mut(&whose) else { continue };
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.taken.remove(&whose);
            }
        }
    }

    fn refuse(&mut self, from: IpAddr) {
        self.refused.inc();
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!(
                peer = %from.to_canonical(),
                connections = self.most,
                "a peer has as many connections as it may, and further ones are closed; for a proxy raise connections_per_peer"
            );
        }
    }
}

/// Whose a connection counts as: an address of the fourth version, and of the sixth the network. None for this machine's.
fn peer_of(from: IpAddr) -> Option<Peer> {
    match from.to_canonical() {
        own if own.is_loopback() => None,
        IpAddr::V4(address) => Some(Peer::Address(address)),
        IpAddr::V6(address) => Some(match translated(address) {
            Some(address) => Peer::Address(address),
            None => Peer::Network(network_of(address)),
        }),
    }
}

fn network_of(address: Ipv6Addr) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = address.octets();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The address of the fourth version for which a translator puts one of the sixth (64:ff9b::/96, RFC 6052): in one /64 there stand all of them.
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, ..] = address.segments() else { return None };
    let [.., a, b, c, d] = address.octets();
    Some(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_has_its_own_part_and_no_other_s() {
        let mut peers = Peers::new(2, &mut Registry::default());
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let first = peers.take(one).unwrap();
        // A listener of both versions says the same address so.
        let _second = peers.take(address("::ffff:192.0.2.1")).unwrap();
        assert!(peers.take(one).is_none());
        let of_other = peers.take(other).unwrap();
        assert_eq!(peers.refused.get(), 1);
        drop(first);
        let _third = peers.take(one).unwrap();
        assert!(peers.take(one).is_none());
        drop(of_other);
        assert!(peers.take(one).is_none(), "another's end gives no place");
        assert_eq!((peers.refused.get(), peers.taken.len()), (3, 1), "who has none is not kept");
    }

    #[test]
    fn of_the_sixth_version_a_network_of_one_machine_is_one_peer() {
        let mut peers = Peers::new(1, &mut Registry::default());
        let _first = peers.take(address("2001:db8:0:1::1")).unwrap();
        assert!(peers.take(address("2001:db8:0:1:ffff::2")).is_none());
        let _second = peers.take(address("2001:db8:0:2::1")).unwrap();
    }

    #[test]
    fn who_has_a_site_has_no_more_than_some_parts_through_all_its_networks() {
        let mut peers = Peers::new(2, &mut Registry::default());
        // The first network of a site begins as the site does.
        let of_site: Vec<Option<Place>> = (0..9).map(|n| peers.take(address(&format!("2001:db8:7:{n:x}::1")))).collect();
        assert_eq!(of_site.iter().flatten().count(), 4);
        let _another_site = peers.take(address("2001:db8:8::1")).unwrap();
        drop(of_site);
        let of_one: Vec<Option<Place>> = (0..9).map(|_| peers.take(address("2001:db8:7::1"))).collect();
        assert_eq!(of_one.iter().flatten().count(), 2, "one network has what it had");
        drop(of_one);
        let _back = peers.take(address("2001:db8:7:1::1")).unwrap();
        assert_eq!(peers.taken.len(), 4, "two networks and their sites");
    }

    #[test]
    fn behind_a_translator_each_address_of_the_fourth_version_is_a_peer() {
        let mut peers = Peers::new(1, &mut Registry::default());
        let _first = peers.take(address("64:ff9b::192.0.2.1")).unwrap();
        let _second = peers.take(address("64:ff9b::192.0.2.2")).unwrap();
        assert!(peers.take(address("192.0.2.1")).is_none() && peers.take(address("64:ff9b::192.0.2.2")).is_none());
        // Its other prefix is somebody's own (RFC 8215), and one peer.
        let _own = peers.take(address("64:ff9b:1::192.0.2.3")).unwrap();
        assert!(peers.take(address("64:ff9b:1::192.0.2.4")).is_none());
    }

    #[test]
    fn this_machine_is_never_refused_and_without_a_bound_nobody_is() {
        let (mut bounded, mut unbounded) = (Peers::new(1, &mut Registry::default()), Peers::new(0, &mut Registry::default()));
        let mut places = Vec::new();
        for _ in 0..3 {
            for own in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
                places.push(bounded.take(address(own)).unwrap());
            }
            places.push(unbounded.take(address("192.0.2.1")).unwrap());
        }
        assert!(bounded.taken.is_empty() && unbounded.taken.is_empty());
    }
}
