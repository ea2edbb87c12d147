//! The one list of operators over ranks, and such an operator bound to a communicator and to tensors.
//!
//! They go through the same choke point as every other operator. What differs is who launches them: the communicator,
//! which one backend made, instead of the backend itself.

use super::SpecRef;
use crate::backend::Backend;
use crate::buffer::Buffer;
use crate::comm::{Communicator, RawCommunicator};
use crate::launch::Launch;
use crate::op::{Arg, Op, OpKind, OpQuery, check_operands, match_tensors, sealed};
use crate::tensor::Tensor;
use core::fmt;
use portolan_ops::comm::Collective;
use portolan_ops::{Access, Cost, Determinism, ErrorKind, OpError, OpName, Result};
use smallvec::SmallVec;

/// Calls a macro with the table of operators over ranks. Each row is a kind (also the name of the bound type), its
/// contract, and the communicator's method that launches it.
#[macro_export]
macro_rules! for_each_collective {
    ($with:path) => {
        $with! {
            /// Combines the tensors of all ranks, for all.
            AllReduce, portolan_ops::comm::AllReduceSpec, all_reduce;
            /// Combines the tensors of all ranks, for one.
            ReduceTo, portolan_ops::comm::ReduceToSpec, reduce_to;
            /// Combines the tensors of all ranks, a part for each.
            ReduceScatter, portolan_ops::comm::ReduceScatterSpec, reduce_scatter;
            /// Collects the tensors of all ranks, for all.
            AllGather, portolan_ops::comm::AllGatherSpec, all_gather;
            /// Sends a part of every rank's rows to every rank.
            AllToAll, portolan_ops::comm::AllToAllSpec, all_to_all;
            /// Copies the tensor of one rank to all.
            Broadcast, portolan_ops::comm::BroadcastSpec, broadcast;
            /// Tensors from single ranks to single ranks.
            Exchange, portolan_ops::comm::ExchangeSpec, exchange;
            /// Waits for every rank.
            Barrier, portolan_ops::comm::BarrierSpec, barrier;
            /// Sends tokens to the ranks of their experts, and sums what those make of them.
            ExpertParallelFfn, portolan_ops::comm::ExpertParallelFfnSpec, expert_parallel_ffn;
        }
    };
}
pub use for_each_collective;

/// A contract that the table of collectives names.
pub trait CollectiveDispatch: Collective + sealed::Sealed {
    /// Which operator.
    const KIND: CollectiveKind;
    /// This contract as a query.
    fn spec_ref(&self) -> CollectiveRef<'_>;
    /// Calls the communicator's method.
    fn dispatch(raw: &dyn RawCommunicator, launch: &Launch<'_>, op: &CollectiveCall<Self>) -> Result<()>;
}

macro_rules! table {
    ($( $(#[$doc:meta])* $kind:ident, $spec:ty, $method:ident; )*) => {
        /// Which operator over ranks.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum CollectiveKind {
            $( $(#[$doc])* $kind, )*
        }

        impl CollectiveKind {
            /// Every operator over ranks, in table order.
            pub const ALL: &'static [CollectiveKind] = &[$( CollectiveKind::$kind, )*];

            /// The communicator's method.
            pub const fn name(self) -> &'static str {
                match self {
                    $( CollectiveKind::$kind => stringify!($method), )*
                }
            }
        }

        /// A contract over ranks, whichever it is.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug)]
        pub enum CollectiveRef<'a> {
            $( $(#[$doc])* $kind(&'a $spec), )*
        }

        impl CollectiveRef<'_> {
            /// Which operator.
            pub fn kind(&self) -> CollectiveKind {
                match self {
                    $( CollectiveRef::$kind(_) => CollectiveKind::$kind, )*
                }
            }

            /// Visits the operands' specs with their names.
            pub fn operands(&self, visit: &mut dyn FnMut(&str, &portolan_ops::TensorSpec, Access)) {
                match self {
                    $( CollectiveRef::$kind(spec) => spec.operands(&mut |o| visit(o.name, o.spec, o.access)), )*
                }
            }
        }

        $(
            $(#[$doc])*
            pub type $kind = CollectiveCall<$spec>;

            impl sealed::Sealed for $spec {}

            impl CollectiveDispatch for $spec {
                const KIND: CollectiveKind = CollectiveKind::$kind;
                fn spec_ref(&self) -> CollectiveRef<'_> {
                    CollectiveRef::$kind(self)
                }
                fn dispatch(raw: &dyn RawCommunicator, launch: &Launch<'_>, op: &CollectiveCall<Self>) -> Result<()> {
                    raw.$method(launch, op)
                }
            }
        )*
    };
}
for_each_collective!(table);

/// One rank's part of an operator over ranks, with its communicator and the tensors it speaks of.
#[derive(Clone)]
pub struct CollectiveCall<C> {
    spec: C,
    comm: Communicator,
    buffers: SmallVec<[Buffer; 6]>,
}

impl<C: CollectiveDispatch> CollectiveCall<C> {
    /// Pairs a contract with a communicator and with tensors, in the order of [`Collective::operands`].
    ///
    /// # Errors
    /// `Attribute` when the contract was made for another rank or group size, `Layout` when a tensor is not the one
    /// it was made for, `Device` for tensors of another device than the communicator's, `Aliasing` when an output
    /// overlaps another operand.
    pub fn bind(comm: &Communicator, spec: C, tensors: &[&Tensor]) -> Result<Self> {
        if spec.ranks() != comm.ranks() {
            let (made, is) = (spec.ranks(), comm.ranks());
            let what = format!(
                "is rank {} of {}, the operator was made for rank {} of {}",
                is.rank(),
                is.world_size(),
                made.rank(),
                made.world_size()
            );
            return Err(OpError::attribute(spec.name(), "communicator", what));
        }
        match_tensors(spec.name(), &|visit| spec.operands(visit), tensors)?;
        let buffers = tensors.iter().map(|t| t.buffer().clone()).collect();
        let call = Self { buffers, comm: comm.clone(), spec };
        check_operands(&call, call.spec.in_place())?;
        Ok(call)
    }

    /// The contract.
    pub fn spec(&self) -> &C {
        &self.spec
    }

    /// The group.
    pub fn communicator(&self) -> &Communicator {
        &self.comm
    }

    /// The tensors with their names, in the order of [`Collective::operands`].
    ///
    /// # Errors
    /// None for a call that was bound.
    pub fn tensors(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let (mut buffers, mut tensors) = (self.buffers.iter(), Vec::new());
        self.spec.operands(&mut |operand| {
            let made = buffers.next().map(|buffer| Tensor::new(buffer.clone(), *operand.spec));
            tensors.extend(made.map(|made| made.map(|tensor| (operand.name, tensor))));
        });
        tensors.into_iter().collect()
    }

    /// Device address of the first byte of each operand's buffer, in the order of [`Collective::operands`] (the
    /// specs' offsets are not added).
    pub fn addresses(&self) -> impl Iterator<Item = usize> + '_ {
        self.buffers.iter().map(Buffer::address)
    }
}

impl<C: CollectiveDispatch> sealed::Sealed for CollectiveCall<C> {}

impl<C: CollectiveDispatch> Op for CollectiveCall<C> {
    fn kind(&self) -> OpKind {
        OpKind::Collective(C::KIND)
    }
    fn op_name(&self) -> OpName {
        self.spec.name().into()
    }
    fn query(&self, determinism: Determinism) -> OpQuery<'_> {
        OpQuery { spec: SpecRef::Collective(self.spec.spec_ref()), determinism }
    }
    fn cost(&self) -> Cost {
        self.spec.cost()
    }
    fn operands(&self, visit: &mut dyn FnMut(Arg<'_>)) {
        let mut buffers = self.buffers.iter();
        self.spec.operands(&mut |operand| {
            if let Some(buffer) = buffers.next() {
                visit(Arg { name: operand.name, buffer, spec: operand.spec, access: operand.access });
            }
        });
        // One communicator, one order: its operators follow each other, on whichever streams they are run.
        let turn = self.comm.turn();
        visit(Arg {
            name: "communicator",
            buffer: turn.buffer(),
            spec: turn.spec(),
            access: Access::ReadWrite,
        });
    }
    fn launch(&self, _: &dyn Backend, launch: &Launch<'_>) -> Result<()> {
        C::dispatch(self.comm.raw(), launch, self)
    }
    fn ready(&self) -> Result<()> {
        // A group that has ended must not taint the stream by the order of its operators. Where none of them has met the
        // end so far, this one has.
        self.comm.health().map_err(|error| match error {
            OpError::Collective { op, seq, rank, world_size, what } if op == "communicator" => {
                OpError::Collective { op: self.op_name(), seq, rank, world_size, what }
            }
            other => other,
        })
    }
    fn refused(&self, error: &OpError) {
        if error.kind() == ErrorKind::DeviceLost {
            self.comm.raw().abort(&format!("cannot take part in {}: {error}", self.spec.name()));
        }
    }
}

impl<C: fmt::Debug> fmt::Debug for CollectiveCall<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

impl fmt::Display for CollectiveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
