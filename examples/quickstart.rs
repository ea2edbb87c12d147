//! Upload two tensors, run three operators on a device chosen by name, read the result back.
//!
//! `cargo run --release --example quickstart` runs on `cpu:0`; another name as the argument picks another device.

use portolan::{OpError, Shape, StreamOptions, Weight, ops};

fn main() -> Result<(), OpError> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "cpu:0".into());
    let device = portolan::open(&name)?;
    let stream = device.stream(StreamOptions::default())?;

    let x = stream.upload(&[1.0f32, 2.0, 3.0, 4.0, 0.5, -1.0], &Shape::new(&[2, 3])?)?;
    let weight = stream.upload(&[0.5f32, -1.0, 0.25, 1.0, 0.0, -0.5], &Shape::new(&[2, 3])?)?;

    // Each call checks its arguments here and is enqueued; nothing waits until `wait`.
    let normed = ops::rms_norm(&stream, &x, None, 1e-5)?;
    let logits = ops::linear(&stream, &normed, &Weight::from(weight))?;
    let chances = ops::softmax(&stream, &logits)?;

    println!("{device:?}: {:?}", stream.download::<f32>(&chances)?.wait()?);

    // A wrong call is an error that says what was seen and what was wanted.
    if let Err(error) = ops::gemm_nn(&stream, &x, &x) {
        println!("{error}");
    }
    Ok(())
}
