//! Responders: alert → incident → containment request, each of them once, whatever crashes in between.
//! Promises that the stream's position advances only past alerts whose requests have an outcome or stand as pending on their incident.
//! Never contains anything itself: it asks control, which applies the limits. A retraction never undoes what was contained.

mod core;
mod deliver;
mod dispatch;
mod record;
mod request;
mod responder;

pub use record::{ResponseRecord, ResponseStatus};
pub use request::{ContainmentRequest, ContainmentRequests, RequestOutcome, RespondError, command_id};
pub use responder::{CONSUMER, Responder, ResponderCounts};
