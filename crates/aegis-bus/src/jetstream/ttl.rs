//! Messages with a time to live of their own: they are sent so where the servers know that (2.11) and the stream was made for it. Elsewhere a
//! message stays as long as its stream keeps any.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{BusError, Message, PubAck, Stream};

/// How long a stream that refused such messages is sent none: `aegis streams apply` is run seldom, and each try costs a publish.
const TRY_AGAIN: Duration = Duration::from_secs(3600);

/// When each stream refused one last.
#[derive(Debug, Default)]
pub(super) struct Ttls(Mutex<[Option<Instant>; 6]>);

impl Ttls {
    /// Takes it from messages that would be refused for it.
    pub(super) fn fit(&self, stream: Stream, messages: &mut [Message], servers_know: bool, now: Instant) {
        let is_refused = || self.0.lock()[stream.index()].is_some_and(|refused| now < refused + TRY_AGAIN);
        if messages.iter().any(|message| message.ttl.is_some()) && (!servers_know || is_refused()) {
            messages.iter_mut().for_each(|message| message.ttl = None);
        }
    }

    /// Looks whether the stream refused it.
    pub(super) fn learn(&self, stream: Stream, results: &[Result<PubAck, BusError>], now: Instant) {
        if results.iter().any(|result| matches!(result, Err(BusError::NoTtl { .. }))) {
            self.0.lock()[stream.index()] = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sent_where_servers_and_stream_take_it() {
        let (ttls, begin) = (Ttls::default(), Instant::now());
        let sent = |stream: Stream, servers_know: bool, now: Instant| -> Vec<bool> {
            let with_ttl = Message::new("approval.t.a", "x").with_ttl(Duration::from_secs(60));
            let mut messages = [with_ttl, Message::new("approval.t.b", "x")];
            ttls.fit(stream, &mut messages, servers_know, now);
            messages.iter().map(|message| message.ttl.is_some()).collect()
        };
        assert_eq!(sent(Stream::Approvals, false, begin), [false, false]);
        assert_eq!(sent(Stream::Approvals, true, begin), [true, false]);
        ttls.learn(Stream::Approvals, &[Ok(PubAck { seq: 1, duplicate: false }), Err(BusError::Closed)], begin);
        assert_eq!(sent(Stream::Approvals, true, begin), [true, false]);
        ttls.learn(Stream::Approvals, &[Err(BusError::NoTtl { stream: Stream::Approvals })], begin);
        assert_eq!(sent(Stream::Approvals, true, begin), [false, false]);
        assert_eq!(sent(Stream::Alerts, true, begin), [true, false], "from one stream nothing follows for another");
        assert_eq!(sent(Stream::Approvals, true, begin + TRY_AGAIN), [true, false], "it may take them by then");
    }
}
