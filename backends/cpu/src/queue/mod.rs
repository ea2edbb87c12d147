//! Streams and events of the CPU: in-order queues with three ways to execute them.

mod event;
pub(crate) mod handoff;
mod latch;
mod stream;

pub(crate) use stream::{CpuStream, Exec, Witness};

#[cfg(test)]
mod tests {
    use crate::{CpuBackend, CpuOptions, Executor};
    use portolan_conformance::{Subject, check_operator, check_round_trips};
    use portolan_core::{OpKind, Registry, StreamOptions};
    use std::sync::{Arc, Mutex, PoisonError, mpsc};
    use std::time::Duration;

    /// Long beyond what the cases take; only a run that waits for the team gets there.
    const PATIENCE: Duration = Duration::from_secs(300);

    #[test]
    fn a_stream_of_one_thread_leaves_the_team_alone() {
        let options = CpuOptions { executor: Executor::Inline, threads: Some(2), ..CpuOptions::default() };
        let backend = CpuBackend::new(options).unwrap();
        let (free, taken) = mpsc::channel::<()>();
        let taken = Mutex::new(taken);
        // Somebody else has the whole team: whoever asks for a second thread waits until `free` is gone.
        let team = backend.team.clone();
        let (started, begun) = mpsc::channel();
        let occupant = std::thread::spawn(move || {
            team.run(2, &|_| {
                let _ = started.send(());
                let _ = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
            });
        });
        begun.recv().unwrap();

        let now_running = Arc::new(Mutex::new("nothing yet"));
        let (done, finished) = mpsc::channel();
        let running = now_running.clone();
        let worker = std::thread::spawn(move || {
            let device = Registry::new().with(backend).open("cpu:0").unwrap();
            let stream =
                device.stream(StreamOptions { threads: Some(1), ..StreamOptions::default() }).unwrap();
            *running.lock().unwrap() = "prepack and unpack";
            assert!(check_round_trips(&stream, 5).unwrap().failures.is_empty());
            for &kind in OpKind::ALL {
                *running.lock().unwrap() = kind.name();
                let subject = Subject { stream: &stream, slack: 1.0 };
                assert!(check_operator(&subject, kind, 5).unwrap().failures.is_empty());
            }
            let _ = done.send(());
        });
        let ended = finished.recv_timeout(PATIENCE);
        drop(free);
        occupant.join().unwrap();
        worker.join().unwrap();
        assert!(ended.is_ok(), "{} waits for more threads than its stream has", now_running.lock().unwrap());
    }
}
