//! How long ranks wait for each other.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_core::meeting::{At, Hub};
use std::thread;
use std::time::{Duration, Instant};

/// A rank that is late and then never comes again does not cost the others two timeouts.
#[test]
fn waiting_before_and_behind_a_meeting_counts_together() {
    const AT: At = At { op: "sum", seq: 3 };
    let (timeout, late) = (Duration::from_millis(1000), Duration::from_millis(900));
    let attempt = || {
        let hub = Hub::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(late);
                let _ = hub.meet(1, AT, (), timeout);
            });
            let start = Instant::now();
            let met = hub.meet(0, AT, (), timeout);
            let stop = met.and_then(|_| hub.fence(0, AT, timeout)).unwrap_err();
            assert_eq!((stop.rank, stop.what.as_str()), (1, "did not come within 1s"));
            start.elapsed()
        })
    };
    // A busy machine is late now and then.
    let took: Vec<_> = (0..5).map(|_| attempt()).take_while(|took| *took >= timeout + late).collect();
    assert!(took.len() < 5, "{took:?}");
}
