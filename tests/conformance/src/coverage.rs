//! What the list of cases leaves out: edges by the shape of operands, element types by asking `support()`.

use crate::arguments::probe;
use crate::edge::Edge;
use portolan_core::{Device, Dispatch, OpKind, OpQuery, Support};
use portolan_ops::{Cases, DType, Determinism, HostTensor, Result, TensorSpec};

/// Edges that cannot be had, and why.
const IMPOSSIBLE: &[(&str, Edge, &str)] = &[];

/// Operators without cases, and why.
const CASELESS: &[(&str, &str)] = &[
    ("prepack", "what a backend packs into is its own"),
    ("unpack", "what a backend packs into is its own"),
];

/// What an operator's cases are made of.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) cases: usize,
    edges: Vec<Edge>,
    /// Element types of operands in cases that the device says it can run.
    dtypes: Vec<DType>,
}

pub(crate) fn survey<C: Cases + Dispatch>(device: &Device, level: Determinism) -> Result<Seen> {
    let mut seen = Seen::default();
    for case in C::cases()? {
        let mut operands: Vec<(TensorSpec, bool)> = Vec::new();
        case.contract.operands(&mut |o| operands.push((*o.spec, o.access.writes())));
        seen.cases += 1;
        for edge in Edge::ALL {
            if !seen.edges.contains(&edge) && edge.touched(&operands) {
                seen.edges.push(edge);
            }
        }
        let query = OpQuery { spec: case.contract.spec_ref(), determinism: level };
        if !matches!(device.support(&query), Support::No(_)) {
            for (spec, _) in &operands {
                if !seen.dtypes.contains(&spec.dtype()) {
                    seen.dtypes.push(spec.dtype());
                }
            }
        }
    }
    Ok(seen)
}

/// What is missing from an operator's cases, in words; nothing when all is there.
pub(crate) fn gaps(kind: OpKind, seen: &Seen, device: &Device, level: Determinism) -> Vec<String> {
    let mut gaps = Vec::new();
    match (seen.cases, CASELESS.iter().any(|(op, _)| *op == kind.name())) {
        (0, true) => return gaps,
        (0, false) => gaps.push("it has no case".to_owned()),
        (_, true) => gaps.push("it has cases, and is listed as having none".to_owned()),
        _ => {}
    }
    for edge in Edge::ALL {
        let impossible = IMPOSSIBLE.iter().any(|(op, what, _)| *op == kind.name() && *what == edge);
        match (seen.edges.contains(&edge), impossible) {
            (false, false) => gaps.push(format!("no case is {edge:?}")),
            (true, true) => gaps.push(format!("a case is {edge:?}, which is listed as impossible")),
            _ => {}
        }
    }
    // A type without a codec on the host can be neither drawn nor compared.
    let has_codec =
        |dtype: &DType| TensorSpec::of(*dtype, &[0]).is_ok_and(|s| HostTensor::filled(&s, 0).is_ok());
    for dtype in DType::ALL.into_iter().filter(has_codec) {
        let supported = probe(kind, dtype, |spec| {
            let query = OpQuery { spec, determinism: level };
            !matches!(device.support(&query), Support::No(_))
        });
        if supported == Some(true) && !seen.dtypes.contains(&dtype) {
            gaps.push(format!("{dtype} is supported, and no case has it"));
        }
    }
    gaps
}
