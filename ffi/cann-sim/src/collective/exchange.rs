//! What ranks give to each other and take from each other: spans of elements, moved or reduced.

use super::{hccl, wrong};
use crate::abi::as_fault;
use crate::error::{Fail, Result};
use crate::profile::Family;
use crate::schedule::mix;
use crate::view::Dtype;
use crate::world::{State, World};

/// An element type of collectives, whose numbers are not those of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    code: i32,
    name: &'static str,
    pub(crate) bytes: usize,
    /// What it counts as where elements are reduced; `None` where they are only moved.
    dtype: Option<Dtype>,
}

/// `HcclDataType`: number, name, bytes, and the type of its arithmetic.
const ELEMENTS: [(i32, &str, usize, Option<Dtype>); 17] = [
    (0, "INT8", 1, Some(Dtype::I8)),
    (1, "INT16", 2, Some(Dtype::I16)),
    (2, "INT32", 4, Some(Dtype::I32)),
    (3, "FP16", 2, Some(Dtype::F16)),
    (4, "FP32", 4, Some(Dtype::F32)),
    (5, "INT64", 8, Some(Dtype::I64)),
    (6, "UINT64", 8, Some(Dtype::U64)),
    (7, "UINT8", 1, None),
    (8, "UINT16", 2, None),
    (9, "UINT32", 4, None),
    (10, "FP64", 8, Some(Dtype::F64)),
    (11, "BFP16", 2, Some(Dtype::Bf16)),
    (12, "INT128", 16, None),
    (14, "HIF8", 1, None),
    (15, "FP8E4M3", 1, None),
    (16, "FP8E5M2", 1, None),
    (17, "FP8E8M0", 1, None),
];

/// `HcclReduceOp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Sum,
    Product,
    Max,
    Min,
}

impl Element {
    /// The type with a number, as far as the product moves it.
    pub(crate) fn new(code: i32, family: Family) -> Result<Self> {
        let row = ELEMENTS.into_iter().find(|row| row.0 == code);
        let (code, name, bytes, dtype) =
            row.ok_or_else(|| wrong(format!("HcclDataType {code} is unknown")))?;
        if code >= 14 && family != Family::A5 {
            return Err(Fail::new(hccl::E_NOT_SUPPORT, format!("this product does not move {name}")));
        }
        Ok(Self { code, name, bytes, dtype })
    }
}

impl Reduce {
    /// The operation with a number, as far as the product reduces elements of the type so.
    pub(crate) fn new(operation: i32, element: Element, family: Family) -> Result<Self> {
        let reduce = match operation {
            0 => Self::Sum,
            1 => Self::Product,
            2 => Self::Max,
            3 => Self::Min,
            _ => return Err(wrong(format!("HcclReduceOp {operation} is unknown"))),
        };
        let wide = matches!(element.dtype, Some(Dtype::U64 | Dtype::F64));
        let narrow = matches!(element.dtype, Some(Dtype::I16 | Dtype::Bf16));
        let refused = element.dtype.is_none()
            || wide && family != Family::A5
            || family == Family::P310 && element.dtype == Some(Dtype::Bf16)
            || narrow && reduce == Self::Product && family != Family::A5;
        if refused {
            let text = format!("{reduce:?} of {} is not one of this product's reductions", element.name);
            return Err(Fail::new(hccl::E_NOT_SUPPORT, text));
        }
        Ok(reduce)
    }

    /// One step, in the type's own arithmetic: rounded, or modulo its size.
    fn step(self, dtype: Dtype, a: u64, b: u64) -> u64 {
        if dtype.is_int() {
            let (x, y) = (dtype.decode_int(a), dtype.decode_int(b));
            let least = |x: i64, y: i64| if dtype == Dtype::U64 { (x as u64) < y as u64 } else { x < y };
            return dtype.encode_int(match self {
                Self::Sum => x.wrapping_add(y),
                Self::Product => x.wrapping_mul(y),
                Self::Max => {
                    if least(x, y) {
                        y
                    } else {
                        x
                    }
                }
                Self::Min => {
                    if least(y, x) {
                        y
                    } else {
                        x
                    }
                }
            });
        }
        let (x, y) = (dtype.decode(a), dtype.decode(b));
        dtype.encode(match self {
            Self::Sum => x + y,
            Self::Product => x * y,
            Self::Max => x.max(y),
            Self::Min => x.min(y),
        })
    }
}

/// Elements of a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// What one rank gives and takes.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// The function that was called.
    pub(crate) name: &'static str,
    pub(crate) element: Element,
    pub(crate) reduce: Option<Reduce>,
    pub(crate) root: Option<u32>,
    /// Whether ranks are reduced in their order, and not in one that the seed picks.
    pub(crate) deterministic: bool,
    pub(crate) device: usize,
    /// Addresses of the buffers.
    pub(crate) send: usize,
    pub(crate) recv: usize,
    /// For each rank, what it gets of this one's buffer.
    pub(crate) gives: Vec<Span>,
    /// For each rank, where this one puts what it gets; one place where ranks are reduced.
    pub(crate) takes: Vec<Span>,
}

impl Exchange {
    /// Why two ranks' exchanges do not fit together.
    pub(crate) fn differs(&self, me: u32, other: &Exchange, peer: u32) -> Option<String> {
        let pair = |name: &str| matches!(name, "HcclSend" | "HcclRecv" | "HcclBatchSendRecv");
        if self.name != other.name && !(pair(self.name) && pair(other.name)) {
            return Some(format!("{} meets {}", self.name, other.name));
        }
        if self.element != other.element {
            return Some(format!("{} meets {}", self.element.name, other.element.name));
        }
        if self.reduce != other.reduce {
            return Some(format!("{:?} meets {:?}", self.reduce, other.reduce));
        }
        if self.root != other.root {
            return Some(format!("root {:?} meets root {:?}", self.root, other.root));
        }
        let count = |spans: &[Span], rank: u32| spans.get(rank as usize).map_or(0, |span| span.count);
        let (given, taken) = (count(&self.gives, peer), count(&other.takes, me));
        let (wanted, brought) = (count(&self.takes, peer), count(&other.gives, me));
        if given != taken {
            return Some(format!("{given} elements are given and {taken} are taken"));
        }
        (wanted != brought).then(|| format!("{wanted} elements are taken and {brought} are given"))
    }

    fn bytes(&self, address: usize, span: Span) -> Result<(usize, usize)> {
        let scaled = |n: u64| usize::try_from(n).ok().and_then(|n| n.checked_mul(self.element.bytes));
        let place = scaled(span.first).and_then(|first| address.checked_add(first));
        match (place, scaled(span.count)) {
            (Some(place), Some(bytes)) => Ok((place, bytes)),
            _ => Err(wrong("more elements than memory has addresses")),
        }
    }

    /// Whether every span lies in a living allocation of the rank's device.
    pub(crate) fn check(&self, state: &State) -> Result {
        let sides = [("send", self.send, &self.gives), ("recv", self.recv, &self.takes)];
        for (side, address, spans) in sides {
            for span in spans.iter().filter(|span| span.count > 0) {
                if address == 0 {
                    return Err(Fail::new(hccl::E_PTR, format!("the {side} buffer is NULL")));
                }
                let (place, bytes) = self.bytes(address, *span)?;
                let block = state.memory.block(place, bytes);
                let block = block.map_err(|fail| wrong(format!("the {side} buffer: {}", fail.text)))?;
                if block.device != self.device {
                    let text = format!(
                        "the {side} buffer is of device {}, the rank of {}",
                        block.device, self.device
                    );
                    return Err(wrong(text));
                }
            }
        }
        Ok(())
    }
}

/// Carries out what every rank brought: first everything is read, then everything is written.
pub(crate) fn exchange(world: &'static World, parts: &[(u32, Exchange)], seed: u64) -> Result {
    let state = world.state();
    let pointer = |rank: u32, exchange: &Exchange, address: usize, span: Span| -> Result<(*mut u8, usize)> {
        let (place, bytes) = exchange.bytes(address, span)?;
        let mapped = state.memory.map(place, bytes).map_err(as_fault);
        mapped
            .map(|at| (at, bytes))
            .map_err(|fail| Fail::new(fail.code, format!("rank {rank}: {}", fail.text)))
    };
    let mut writes: Vec<(*mut u8, Vec<u8>)> = Vec::new();
    for (me, mine) in parts {
        let mut gathered: Vec<(Span, Vec<u8>)> = Vec::new();
        for (peer, theirs) in parts {
            let span = theirs.gives.get(*me as usize).copied().unwrap_or_default();
            let place = mine.takes.get(*peer as usize).copied().unwrap_or_default();
            if span.count == 0 {
                continue;
            }
            let (from, bytes) = pointer(*peer, theirs, theirs.send, span)?;
            let mut data = vec![0; bytes];
            // SAFETY: the range was mapped just now and lies in one living allocation; no other work runs meanwhile.
            unsafe { data.as_mut_ptr().copy_from_nonoverlapping(from, bytes) };
            gathered.push((place, data));
        }
        match (mine.reduce, mine.element.dtype) {
            (Some(reduce), Some(dtype)) if !gathered.is_empty() => {
                if !mine.deterministic {
                    let start = mix(seed, u64::from(mine.root.unwrap_or(0))) % gathered.len() as u64;
                    gathered.rotate_left(start as usize);
                }
                let (place, first) = gathered.remove(0);
                let sum = gathered.iter().fold(first, |sum, (_, data)| reduced(reduce, dtype, &sum, data));
                writes.push((pointer(*me, mine, mine.recv, place)?.0, sum));
            }
            _ => {
                for (place, data) in gathered {
                    writes.push((pointer(*me, mine, mine.recv, place)?.0, data));
                }
            }
        }
    }
    for (to, data) in writes {
        // SAFETY: as above; what is given was compared with what is taken, so the range is so long.
        unsafe { to.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    }
    Ok(())
}

fn reduced(reduce: Reduce, dtype: Dtype, a: &[u8], b: &[u8]) -> Vec<u8> {
    let size = dtype.bits() / 8;
    let bits = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes);
        u64::from_le_bytes(wide)
    };
    let pairs = a.chunks_exact(size).zip(b.chunks_exact(size));
    pairs
        .flat_map(|(a, b)| reduce.step(dtype, bits(a), bits(b)).to_le_bytes().into_iter().take(size))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(reduce: Reduce, dtype: Dtype, a: f64, b: f64) -> f64 {
        dtype.decode(reduce.step(dtype, dtype.encode(a), dtype.encode(b)))
    }

    #[test]
    fn steps_round_and_wrap_as_their_type_does() {
        // 2048 + 1 is not a number of half precision; the tie goes to the even one.
        assert_eq!(step(Reduce::Sum, Dtype::F16, 2048.0, 1.0), 2048.0);
        assert_eq!(step(Reduce::Sum, Dtype::F16, 65504.0, 65504.0), f64::INFINITY);
        assert_eq!(step(Reduce::Sum, Dtype::I8, 100.0, 100.0), -56.0);
        assert_eq!(step(Reduce::Product, Dtype::I32, 65536.0, 65536.0), 0.0);
        assert_eq!(step(Reduce::Max, Dtype::Bf16, -1.0, 3.0), 3.0);
        assert_eq!(Reduce::Min.step(Dtype::U64, u64::MAX, 1), 1);
        assert_eq!(Reduce::Max.step(Dtype::U64, u64::MAX, 1), u64::MAX);
        assert_eq!(Reduce::Max.step(Dtype::I64, u64::MAX, 1), 1);
    }

    #[test]
    fn products_reduce_what_they_document() {
        let element = |code, family| Element::new(code, family).unwrap();
        for (code, operation, family, takes) in [
            (4, 0, Family::A2, true),
            (11, 0, Family::A2, true),
            (11, 1, Family::A2, false),
            (1, 1, Family::A3, false),
            (10, 0, Family::A3, false),
            (10, 0, Family::A5, true),
            (7, 0, Family::A5, false),
            (4, 4, Family::A3, false),
        ] {
            let made = Reduce::new(operation, element(code, family), family);
            assert_eq!(made.is_ok(), takes, "{code} {operation} {family:?}");
        }
        assert!(Element::new(15, Family::A3).is_err() && Element::new(15, Family::A5).is_ok());
        assert!(Element::new(13, Family::A5).is_err());
    }
}
