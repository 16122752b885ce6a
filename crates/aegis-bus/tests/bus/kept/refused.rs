//! A disk that refuses pages behind a commit's back, for real: a file system in a file that has no room where it stands. What the system says of it once
//! is heard, and what is committed afterwards outlives the power (docs/adr/0049).

use tokio::time::{Instant, sleep};

use super::disk::Disk;
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
/// Messages of the keeper that the disk has, and that it refuses.
const TAKEN: i64 = 3;
const REFUSED: i64 = 60;

#[tokio::test]
async fn what_is_committed_behind_pages_that_a_disk_refused_outlives_the_power() {
    let Some(disk) = Disk::mounted() else {
        println!("left out: no file system can be mounted here");
        return;
    };
    let shelf = Arc::new(Shelf::default());
    let bus = open(&disk.path("mounted"), limits(), &shelf).await;
    let publish = async |message: Message| bus.publish(Stream::Ase, vec![message]).await.pop().unwrap();
    for n in 1..=TAKEN {
        publish(shelf.keep(n, "ase.00.t.x", &format!("kept {n}"))).await.unwrap();
    }
    bus.settle().await.unwrap();
    assert!(disk.sync());
    disk.fill();
    for n in TAKEN + 1..=TAKEN + REFUSED {
        publish(shelf.keep(n, "ase.00.t.x", &format!("kept {n}"))).await.unwrap();
    }
    // The system writes now what it was given, and is refused. Nobody is told but whoever asks for the disk next.
    disk.sync();
    let whole = || Message::new("ase.00.t.y", "whole").with_id("whole");
    let refused = publish(whole()).await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("disk I/O error"), "{refused}");
    // Nothing is worked into the file that the disk would refuse there.
    for _ in 0..3 {
        publish(whole()).await.unwrap_err();
    }
    disk.make_room();
    let begun = Instant::now();
    while publish(whole()).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "the bus does not go on");
        sleep(Duration::from_millis(50)).await;
    }

    // The power fails here.
    disk.sync();
    let after = EmbeddedBus::open(&disk.after_the_power().join("bus.db"), limits(), Arc::new(SystemClock)).await.unwrap();
    assert_eq!(after.keep_with("shelf", Arc::clone(&shelf) as Arc<dyn Keeper>).await.unwrap(), Some(TAKEN + REFUSED));
    let kept = (1..=TAKEN + REFUSED).map(|n| format!("kept {n}"));
    let expected: Vec<(u64, String)> = (1..).zip(kept.chain(["whole".to_owned()])).collect();
    assert_eq!(texts(&read(&after, ">", 0, 100).await), expected);
    after.close().await;
    bus.close().await;
}
