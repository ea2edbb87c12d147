//! Mistakes of the program, planted: a call is given another argument than the program gave it.
//!
//! The driver sees the call as a program with that mistake would have made it. The log shows the other argument, and
//! whatever rule it breaks is what speaks against it.

use crate::log::Log;
use serde_json::Value;
use std::ffi::c_void;

/// An argument that is replaced: in the `at`-th call of a function.
pub(crate) struct Mistake {
    pub(crate) call: String,
    pub(crate) at: u64,
    argument: String,
    instead: Instead,
}

enum Instead {
    Number(i64),
    /// What an argument was in an earlier call, moved by so much.
    Earlier {
        call: String,
        at: u64,
        argument: String,
        plus: i64,
    },
}

impl Mistake {
    /// The mistake that an object with `argument` describes.
    pub(crate) fn parse(row: &Value) -> Option<Self> {
        let text = |row: &Value, key: &str| row[key].as_str().map(str::to_owned);
        let instead = match row["number"].as_i64() {
            Some(number) => Instead::Number(number),
            None => {
                let of = &row["earlier"];
                Instead::Earlier {
                    call: text(of, "call")?,
                    at: of["at"].as_u64()?,
                    argument: text(of, "argument")?,
                    plus: of["plus"].as_i64().unwrap_or(0),
                }
            }
        };
        Some(Self {
            call: text(row, "call")?,
            at: row["at"].as_u64()?,
            argument: text(row, "argument")?,
            instead,
        })
    }

    /// The argument's name and its bits; why there are none, where the earlier call has no such argument.
    pub(crate) fn replacement(&self, log: &Log, planned_at: u64) -> Result<(String, i64), String> {
        let bits = match &self.instead {
            Instead::Number(number) => *number,
            Instead::Earlier { call, at, argument, plus } => {
                let found = log.argument(planned_at, call, *at, argument).and_then(bits);
                let missing = || format!("planned: call {at} of {call} has no number {argument} so far");
                found.ok_or_else(missing)?.wrapping_add(*plus)
            }
        };
        Ok((self.argument.clone(), bits))
    }
}

/// The number that the log shows of an argument.
fn bits(shown: &Value) -> Option<i64> {
    let address = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    match shown {
        Value::Null => Some(0),
        Value::Bool(value) => Some((*value).into()),
        Value::String(text) => address(text).map(u64::cast_signed),
        number => number.as_i64().or_else(|| number.as_u64().map(u64::cast_signed)),
    }
}

/// What an argument of C may be replaced by.
pub(crate) trait Plain: Copy {
    /// The value with these bits; the same one where a type has none.
    fn replaced(self, bits: i64) -> Self;
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Plain for $ty {
            fn replaced(self, bits: i64) -> Self {
                bits as $ty
            }
        }
    )*};
}
integers!(i8, i32, i64, u32, u64, usize, f64);

impl Plain for bool {
    fn replaced(self, bits: i64) -> Self {
        bits != 0
    }
}

impl<P> Plain for *mut P {
    fn replaced(self, bits: i64) -> Self {
        core::ptr::with_exposed_provenance_mut(bits.cast_unsigned() as usize)
    }
}

impl<P> Plain for *const P {
    fn replaced(self, bits: i64) -> Self {
        self.cast_mut().replaced(bits).cast_const()
    }
}

impl Plain for Option<unsafe extern "C" fn(*mut c_void)> {
    fn replaced(self, _bits: i64) -> Self {
        self
    }
}
