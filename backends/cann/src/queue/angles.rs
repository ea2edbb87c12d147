//! Cosines and sines that a stream keeps: the layers of a model turn their heads by the same positions.
//!
//! A table is of a tensor of positions as an operator last wrote it; core numbers every write, so positions that were
//! written again are another table's. The memory is the stream's own: what is on the stream already reads a table before
//! what comes later may write it. Memory that became too small is kept until the stream goes, as work that was not yet
//! run may read it.

use crate::context::OnDevice;
use crate::memory;
use portolan_ops::rope::{RopeScaling, RopeSpec, RopeStyle};
use portolan_ops::{Result, TensorSpec};

/// Tables that are kept: models have one or two kinds of rotations.
const MOST: usize = 4;

/// What a table is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    /// Where the positions lie, and which write left them there.
    address: usize,
    written: (u64, u64),
    positions: TensorSpec,
    style: RopeStyle,
    rotary_dim: usize,
    theta: f64,
    scaling: RopeScaling,
    inverse: bool,
}

impl Turn {
    /// The table of a rotation by these positions; `None` for memory that nobody wrote.
    pub(crate) fn of(spec: &RopeSpec, positions: &portolan_core::Tensor) -> Option<Self> {
        Some(Self {
            address: positions.buffer().address(),
            written: positions.buffer().written()?,
            positions: *positions.spec(),
            style: spec.style(),
            rotary_dim: spec.rotary_dim(),
            theta: spec.theta(),
            scaling: spec.scaling(),
            inverse: spec.is_inverse(),
        })
    }
}

/// One table's memory, and what is in it.
struct Table {
    turn: Option<Turn>,
    address: usize,
    bytes: usize,
    used: u64,
}

/// The tables of a stream.
#[derive(Default)]
pub(crate) struct Angles {
    tables: Vec<Table>,
    /// Memory that became too small.
    outgrown: Vec<usize>,
    uses: u64,
}

/// A table's place among those of its stream.
#[derive(Clone, Copy)]
pub(crate) struct Place(usize);

impl Angles {
    /// The address of a table that is there.
    pub(crate) fn find(&mut self, turn: &Turn) -> Option<usize> {
        self.uses += 1;
        let table = self.tables.iter_mut().find(|table| table.turn.as_ref() == Some(turn))?;
        table.used = self.uses;
        Some(table.address)
    }

    /// Memory for a table, in the place of the one that was not used for the longest time; it holds none until
    /// [`Angles::fill`] says so.
    pub(crate) fn room(&mut self, on: &OnDevice<'_>, bytes: usize) -> Result<(Place, usize)> {
        self.uses += 1;
        let oldest = self.tables.iter().enumerate().min_by_key(|(_, table)| table.used).map(|(at, _)| at);
        let at = match oldest {
            Some(at) if self.tables.len() == MOST => at,
            _ => {
                self.tables.push(Table { turn: None, address: 0, bytes: 0, used: 0 });
                self.tables.len() - 1
            }
        };
        let table = &mut self.tables[at];
        (table.turn, table.used) = (None, self.uses);
        if table.bytes < bytes {
            // Powers of two, so that all that was outgrown is less than what is there.
            let bytes = bytes.checked_next_power_of_two().unwrap_or(bytes);
            let address = memory::take(on.driver, on.device, bytes)?;
            if table.bytes > 0 {
                self.outgrown.push(table.address);
            }
            (table.address, table.bytes) = (address, bytes);
        }
        Ok((Place(at), table.address))
    }

    /// What is on the stream now leaves this table there.
    pub(crate) fn fill(&mut self, place: Place, turn: Turn) {
        if let Some(table) = self.tables.get_mut(place.0) {
            table.turn = Some(turn);
        }
    }

    /// All memory, which nothing uses any more.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = usize> {
        let tables = self.tables.drain(..).filter(|table| table.bytes > 0).map(|table| table.address);
        tables.chain(self.outgrown.drain(..))
    }
}
