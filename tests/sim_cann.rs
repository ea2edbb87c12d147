//! Simulated Ascend devices as a program sees them: several products in one process, found beside the program.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan::cann::{CannBackend, CannOptions};
use portolan::sim::{self, SimOptions};
use portolan::{ErrorKind, Registry, Shape, StreamOptions};

#[test]
fn products_live_side_by_side_and_leave_nothing() {
    let names = ["310P", "A2", "A3", "950"].map(|soc| {
        let world = sim::cann(SimOptions { soc: soc.into(), ..SimOptions::default() }).unwrap();
        let backend = CannBackend::new(CannOptions {
            folder: Some(world.folder().to_owned()),
            ..CannOptions::default()
        });
        let device = Registry::new().with(backend).open("cann:1").unwrap();
        let stream = device.stream(StreamOptions::default()).unwrap();
        let x = stream.upload(&[1f32, 2.0, 3.0], &Shape::new(&[3]).unwrap()).unwrap();
        assert_eq!(stream.download::<f32>(&x).unwrap().wait().unwrap(), [1.0, 2.0, 3.0]);
        stream.synchronize().unwrap();
        let name = device.info().name.clone();
        drop((x, stream, device));
        (name, world)
    });
    for (name, world) in &names {
        assert!(name.ends_with(" SIMULATED"), "{name}");
        let report = world.report().unwrap();
        assert!(report.is_clean(), "{name}: {report}");
    }
    assert_eq!(names.iter().map(|(name, _)| name).collect::<std::collections::HashSet<_>>().len(), 4);
}

#[test]
fn a_simulator_that_is_not_there_is_unavailable_with_the_command_that_builds_it() {
    let options = SimOptions { library: Some("/nowhere/lib.so".into()), ..SimOptions::default() };
    let error = sim::cann(options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("cargo build -p portolan-cann-sim"), "{error}");
    let error = sim::cann(SimOptions { soc: "A7".into(), ..SimOptions::default() }).err().unwrap();
    assert!(error.to_string().contains("310P, A2, A3 or 950"), "{error}");
}
