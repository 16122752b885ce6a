//! L-CONSUME with requests that are asked again: the answer is repeated, the consume never is.

use aegis_model::{ApprovalStatus, ContainmentKind, EventId, TargetType, TenantId, Timestamp};
use aegis_store::{ConsumeResult, OutboxRow, Store, VoteResult};

use crate::fixtures::*;

/// How long an answer is repeated, seconds.
const REPEATED_FOR_S: i64 = 900;
const MINE: Option<&str> = Some("digest of my request");
const ANOTHER: Option<&str> = Some("digest of another request");

async fn approved(store: &Store, tenant: &TenantId, id: &str) {
    assert!(store.insert_approval(&frozen(tenant, id, 1)).await.unwrap());
    let vote = store.record_approval_vote(tenant, id, "ann", "hash-0", START, &[]).await.unwrap();
    assert_eq!(vote, VoteResult::Approved);
}

/// Consumes with a fact of its own; what came of it, and the fact.
async fn consume(store: &Store, id: &str, request: Option<&str>, now: Timestamp) -> (ConsumeResult, OutboxRow) {
    let fact = fact(&acme());
    let came = store.consume_approval(&acme(), id, "hash-0", request, now, std::slice::from_ref(&fact)).await.unwrap();
    (came, fact)
}

#[tokio::test]
async fn only_the_request_that_consumed_is_answered_again_and_not_for_ever() {
    let mut place = Place::new().await;
    approved(&place.store, &acme(), "a").await;
    let (first, fact) = consume(&place.store, "a", MINE, START).await;
    assert_eq!(first, ConsumeResult::Consumed);
    place.reopen().await;
    let store = &place.store;
    let again = async |request: Option<&'static str>, now: Timestamp| consume(store, "a", request, now).await.0;
    let the_answer = ConsumeResult::Repeated(Some(fact.event_id));
    assert_eq!(again(MINE, START).await, the_answer);
    assert_eq!(again(ANOTHER, START).await, ConsumeResult::AlreadyConsumed);
    assert_eq!(again(None, START).await, ConsumeResult::AlreadyConsumed);
    let other_hash = store.consume_approval(&acme(), "a", "hash-1", MINE, START, &[]).await.unwrap();
    assert_eq!(other_hash, ConsumeResult::RequestMismatch);
    let none_s = store.consume_approval(&acme(), "a", "hash-1", ANOTHER, START, &[]).await.unwrap();
    assert_eq!(none_s, ConsumeResult::AlreadyConsumed);
    // A clock that was set back takes nothing from it.
    assert_eq!(again(MINE, START.plus_seconds(-60)).await, the_answer);
    assert_eq!(again(MINE, START.plus_seconds(REPEATED_FOR_S).plus_micros(-1)).await, the_answer);
    assert_eq!(again(MINE, START.plus_seconds(REPEATED_FOR_S)).await, ConsumeResult::AlreadyConsumed);
    assert_eq!(store.pending_outbox(10).await.unwrap(), [fact], "a repeated answer is no fact");
}

#[tokio::test]
async fn an_approval_that_was_consumed_without_a_request_is_nobody_s_to_repeat() {
    let place = Place::new().await;
    approved(&place.store, &acme(), "a").await;
    assert_eq!(consume(&place.store, "a", None, START).await.0, ConsumeResult::Consumed);
    for request in [None, MINE, Some("")] {
        assert_eq!(consume(&place.store, "a", request, START).await.0, ConsumeResult::AlreadyConsumed);
    }
}

#[tokio::test]
async fn the_same_request_in_another_tenant_or_about_another_approval_is_another() {
    let place = Place::new().await;
    let store = &place.store;
    let other = tenant("other");
    store.create_tenant(&other, "Other").await.unwrap();
    for (tenant, id) in [(&acme(), "a"), (&acme(), "b"), (&other, "a")] {
        approved(store, tenant, id).await;
    }
    assert_eq!(consume(store, "a", MINE, START).await.0, ConsumeResult::Consumed);
    assert_eq!(consume(store, "b", MINE, START).await.0, ConsumeResult::Consumed);
    let there = store.consume_approval(&other, "a", "hash-0", MINE, START, &[]).await.unwrap();
    assert_eq!(there, ConsumeResult::Consumed);
}

#[tokio::test]
async fn a_refused_request_is_not_the_one_that_consumed() {
    let place = Place::new().await;
    let store = &place.store;
    store.insert_approval(&frozen(&acme(), "a", 1)).await.unwrap();
    assert_eq!(consume(store, "a", MINE, START).await.0, ConsumeResult::NotApproved(ApprovalStatus::Pending));
    store.record_approval_vote(&acme(), "a", "ann", "hash-0", START, &[]).await.unwrap();
    assert_eq!(consume(store, "a", ANOTHER, START).await.0, ConsumeResult::Consumed);
    assert_eq!(consume(store, "a", MINE, START).await.0, ConsumeResult::AlreadyConsumed);
}

#[tokio::test]
async fn what_holds_an_action_holds_its_repeated_answer() {
    let place = Place::new().await;
    let store = &place.store;
    let mut of_server = frozen(&acme(), "a", 1);
    of_server.tool_call.tool = "mcp:files".into();
    store.insert_approval(&of_server).await.unwrap();
    store.record_approval_vote(&acme(), "a", "ann", "hash-0", START, &[]).await.unwrap();
    assert_eq!(consume(store, "a", MINE, START).await.0, ConsumeResult::Consumed);
    let at = |seconds| START.plus_seconds(seconds);

    store
        .add_hold(&acme(), TargetType::Agent, "agent-1", &hold("1", ContainmentKind::Freeze, "ann", Some(at(10))), &[])
        .await
        .unwrap();
    assert_eq!(consume(store, "a", MINE, at(9)).await.0, ConsumeResult::Contained);
    let quarantine = hold("2", ContainmentKind::Quarantine, "ann", Some(at(20)));
    store.add_hold(&acme(), TargetType::McpServer, "files", &quarantine, &[]).await.unwrap();
    assert_eq!(consume(store, "a", MINE, at(19)).await.0, ConsumeResult::ServerQuarantined);
    store.put_mcp_server(&acme(), &mcp_server("Files"), &[]).await.unwrap();
    assert_eq!(consume(store, "a", MINE, at(20)).await.0, ConsumeResult::ManifestDrifted);
    let mut settled = mcp_server("Files");
    settled.drifted = false;
    store.put_mcp_server(&acme(), &settled, &[]).await.unwrap();
    assert!(matches!(consume(store, "a", MINE, at(20)).await.0, ConsumeResult::Repeated(Some(_))));
    store.revoke(&acme(), TargetType::Agent, "agent-1", &[]).await.unwrap();
    assert_eq!(consume(store, "a", MINE, at(20)).await.0, ConsumeResult::Contained);
}

/// A generator of small numbers (xorshift64), the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

const ASKED_IN_A_ROUND: usize = 48;
const ROUNDS: u64 = 12;

/// One call of a round: through which process, under which request, with the approved hash or another, and when.
#[derive(Clone, Copy, Debug)]
struct Asked {
    process: usize,
    request: Option<&'static str>,
    hash: &'static str,
    seconds: i64,
}

fn asked(dice: &mut Dice) -> Asked {
    Asked {
        process: usize::from(dice.below(2) == 1),
        request: [None, Some("request 0"), Some("request 1"), Some("request 2")][usize::try_from(dice.below(4)).unwrap()],
        hash: ["hash-0", "hash-0", "hash-0", "hash-1"][usize::try_from(dice.below(4)).unwrap()],
        seconds: [0, 1, REPEATED_FOR_S - 1, REPEATED_FOR_S + 600][usize::try_from(dice.below(4)).unwrap()],
    }
}

/// The law: whatever is asked, how often, in which order and beside what else, one call at most consumes, it alone leaves a fact, and nobody but
/// who asks under its request is told that it was them; they are told of its event.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_any_requests_in_any_order_one_consumes_and_its_own_alone_repeat_it() {
    let place = Place::new().await;
    let second = place.another().await;
    for round in 1..=ROUNDS {
        let mut dice = Dice(round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let id = format!("approval-{round}");
        approved(&place.store, &acme(), &id).await;
        let mut tasks = Vec::new();
        for _ in 0..ASKED_IN_A_ROUND {
            let one = asked(&mut dice);
            let (store, id) = (if one.process == 0 { place.store.clone() } else { second.clone() }, id.clone());
            let task = async move {
                let fact = fact(&acme());
                let now = START.plus_seconds(one.seconds);
                let facts = std::slice::from_ref(&fact);
                let came = store.consume_approval(&acme(), &id, one.hash, one.request, now, facts).await.unwrap();
                (one, came, fact)
            };
            // Some at once, some one after another.
            if dice.below(4) == 0 {
                tasks.push(tokio::spawn(std::future::ready(task.await)));
            } else {
                tasks.push(tokio::spawn(task));
            }
        }
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        let winners: Vec<_> = answers.iter().filter(|(_, came, _)| *came == ConsumeResult::Consumed).collect();
        let [(winner, _, fact)] = winners[..] else { panic!("{} consumes won in round {round}: {answers:?}", winners.len()) };
        assert_eq!(winner.hash, "hash-0", "the approved action alone is consumed");
        assert_eq!(place.store.pending_outbox(100).await.unwrap(), std::slice::from_ref(fact));
        assert!(place.store.delete_outbox(fact.event_id).await.unwrap());
        for (one, came, _) in &answers {
            let is_the_winner_s = one.request.is_some() && one.request == winner.request;
            match came {
                ConsumeResult::Repeated(event) => {
                    assert!(is_the_winner_s && one.hash == "hash-0", "{one:?} was told what {winner:?} did");
                    assert_eq!(*event, Some::<EventId>(fact.event_id));
                }
                ConsumeResult::RequestMismatch => assert!(is_the_winner_s && one.hash != "hash-0", "{one:?} of {winner:?}"),
                ConsumeResult::Consumed
                | ConsumeResult::AlreadyConsumed
                | ConsumeResult::HashMismatch
                | ConsumeResult::Expired => {}
                other => panic!("{other:?} to {one:?}"),
            }
        }
        // And whoever asks again when all is over: the winner's request within its time, and no other.
        let after = winner.seconds;
        for request in [None, Some("request 0"), Some("request 1"), Some("request 2")] {
            let came = consume(&place.store, &id, request, START.plus_seconds(after)).await.0;
            let expected = if request.is_some() && request == winner.request {
                ConsumeResult::Repeated(Some(fact.event_id))
            } else {
                ConsumeResult::AlreadyConsumed
            };
            assert_eq!(came, expected, "{request:?} after {winner:?}");
        }
    }
}
