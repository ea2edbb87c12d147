//! Limits for templates from files nobody here wrote: instructions, nesting, and the text and lists they build.
//! Jinja has no notion of memory: doubling a string forty times takes forty instructions. So the template is
//! compiled, and every instruction that reads or makes something large is replaced by a call that charges a budget for it
//! (`replace.rs` has those calls). Rendering is in `mod.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use minijinja::machinery::{Instruction, Instructions, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::error::ChatError;
use crate::tokenizer::excerpt;

/// What may still be read and made; shared by everything one rendering does.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    left: Arc<AtomicU64>,
    spent: Arc<AtomicBool>,
}

/// Values nested deeper than this are no conversation; printing or comparing them could exhaust the stack.
const MAX_DEPTH: u32 = 32;

impl Budget {
    pub(super) fn new(units: u64) -> Self {
        Self { left: Arc::new(AtomicU64::new(units)), spent: Arc::default() }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed)
    }

    /// Takes `units`, or fails for good.
    pub(super) fn take(&self, units: u64) -> Result<(), Error> {
        let taken =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(units));
        if taken.is_ok() {
            return Ok(());
        }
        self.spent.store(true, Ordering::Relaxed);
        Err(Error::new(ErrorKind::InvalidOperation, "too much text"))
    }

    /// Takes a unit for every value in `value` and for every byte of its texts.
    pub(super) fn charge(&self, value: &Value) -> Result<(), Error> {
        self.charge_nested(value, 0)
    }

    fn charge_nested(&self, value: &Value, depth: u32) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            self.spent.store(true, Ordering::Relaxed);
            return Err(Error::new(ErrorKind::InvalidOperation, "too much nesting"));
        }
        self.take(1 + value.as_str().map_or(0, str::len) as u64)?;
        // Values without a length are iterators that reading would use up; what is made of them is charged.
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
            && value.len().is_some()
        {
            for key in value.try_iter()? {
                if value.kind() == ValueKind::Map {
                    self.charge_nested(&value.get_item(&key)?, depth + 1)?;
                }
                self.charge_nested(&key, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// The function an operation is replaced by, and the number of its operands.
fn operation(op: &Instruction<'_>) -> Option<(&'static str, u16)> {
    Some(match op {
        Instruction::Add => ("__add", 2),
        Instruction::Mul => ("__multiply", 2),
        Instruction::StringConcat => ("__concat", 2),
        Instruction::Eq => ("__eq", 2),
        Instruction::Ne => ("__ne", 2),
        Instruction::Lt => ("__lt", 2),
        Instruction::Lte => ("__le", 2),
        Instruction::Gt => ("__gt", 2),
        Instruction::Gte => ("__ge", 2),
        Instruction::In => ("__in", 2),
        Instruction::Slice => ("__slice", 4),
        _ => return None,
    })
}

/// The filters there are, each with the function it is replaced by; those left out make much out of little.
pub(super) const FILTERS: [(&str, &str); 38] = [
    ("abs", "__f_abs"),
    ("bool", "__f_bool"),
    ("capitalize", "__f_capitalize"),
    ("count", "__f_count"),
    ("default", "__f_default"),
    ("d", "__f_d"),
    ("dictsort", "__f_dictsort"),
    ("e", "__f_e"),
    ("escape", "__f_escape"),
    ("first", "__f_first"),
    ("float", "__f_float"),
    ("int", "__f_int"),
    ("items", "__f_items"),
    ("join", "__f_join"),
    ("last", "__f_last"),
    ("length", "__f_length"),
    ("lines", "__f_lines"),
    ("list", "__f_list"),
    ("lower", "__f_lower"),
    ("map", "__f_map"),
    ("max", "__f_max"),
    ("min", "__f_min"),
    ("reject", "__f_reject"),
    ("rejectattr", "__f_rejectattr"),
    ("replace", "__f_replace"),
    ("reverse", "__f_reverse"),
    ("round", "__f_round"),
    ("safe", "__f_safe"),
    ("select", "__f_select"),
    ("selectattr", "__f_selectattr"),
    ("sort", "__f_sort"),
    ("split", "__f_split"),
    ("string", "__f_string"),
    ("title", "__f_title"),
    ("tojson", "__f_tojson"),
    ("trim", "__f_trim"),
    ("unique", "__f_unique"),
    ("upper", "__f_upper"),
];

/// The tests that read their value, each with the function it is replaced by.
pub(super) const TESTS: [(&str, &str); 19] = [
    ("eq", "__t_eq"),
    ("equalto", "__t_equalto"),
    ("==", "__t_=="),
    ("ne", "__t_ne"),
    ("!=", "__t_!="),
    ("lt", "__t_lt"),
    ("lessthan", "__t_lessthan"),
    ("<", "__t_<"),
    ("le", "__t_le"),
    ("<=", "__t_<="),
    ("gt", "__t_gt"),
    ("greaterthan", "__t_greaterthan"),
    (">", "__t_>"),
    ("ge", "__t_ge"),
    (">=", "__t_>="),
    ("in", "__t_in"),
    ("startingwith", "__t_startingwith"),
    ("endingwith", "__t_endingwith"),
    ("divisibleby", "__t_divisibleby"),
];

/// Replaces what reads or makes something large, refuses what reaches other templates, and returns the longest raw
/// text, which is printed without a charge.
pub(super) fn replace_instructions(code: &mut Instructions<'_>) -> Result<usize, ChatError> {
    let refuse = |what: &str| Err(ChatError::Unsupported { what: excerpt(what) });
    let mut longest = 0;
    let mut at = 0;
    while let Some(op) = code.get_mut(at) {
        at += 1;
        if let Some((name, count)) = operation(op) {
            *op = Instruction::CallFunction(name, Some(count));
            continue;
        }
        match op {
            Instruction::EmitRaw(text) => longest = longest.max(text.len()),
            Instruction::ApplyFilter(name, count, _) => {
                match FILTERS.iter().find(|(filter, _)| filter == name) {
                    Some((_, function)) => *op = Instruction::CallFunction(function, *count),
                    None => return refuse(name),
                }
            }
            Instruction::PerformTest(name, count, _) => {
                if let Some((_, function)) = TESTS.iter().find(|(test, _)| test == name) {
                    *op = Instruction::CallFunction(function, *count);
                }
            }
            Instruction::BuildList(count) | Instruction::BuildTuple(count) => {
                let count = count.map(u16::try_from).transpose();
                let Ok(count) = count else { return refuse("a list this long") };
                *op = Instruction::CallFunction("__list", count);
            }
            Instruction::BuildMap(pairs) => {
                let Ok(count) = u16::try_from(*pairs * 2) else { return refuse("a mapping this long") };
                *op = Instruction::CallFunction("__map", Some(count));
            }
            Instruction::CompareAndPreserve(_) => return refuse("a chain of comparisons"),
            Instruction::Include(_) => return refuse("include"),
            Instruction::LoadBlocks => return refuse("extends"),
            Instruction::CallBlock(_) | Instruction::FastSuper => return refuse("block"),
            Instruction::ExportLocals => return refuse("import"),
            _ => {}
        }
    }
    Ok(longest)
}

/// The most tokens in one `{{ … }}` or `{% … %}`, and the most of those: both bound how deep the parser nests.
const MAX_TOKENS: usize = 512;
const MAX_BLOCKS: usize = 4096;

/// Refuses what the parser and the compiler would already stumble over: endless nesting, and products of texts and
/// lists, which the compiler works out where they are constant.
pub(super) fn check_tokens(source: &str, syntax: SyntaxConfig) -> Result<(), ChatError> {
    let (mut product, mut large) = (false, false);
    let (mut tokens, mut blocks) = (0, 0);
    for item in tokenize(source, false, syntax) {
        // Any error is the parser's to report.
        let Ok((token, _)) = item else { return Ok(()) };
        tokens += 1;
        match token {
            Token::BlockStart | Token::VariableStart => {
                (product, large, tokens) = (false, false, 0);
                blocks += 1;
            }
            Token::Mul => product = true,
            Token::Str(_) | Token::String(_) | Token::BracketOpen => large = true,
            _ => {}
        }
        if product && large {
            return Err(ChatError::Unsupported { what: "multiplication beside texts or lists".into() });
        }
        if tokens > MAX_TOKENS || blocks > MAX_BLOCKS {
            return Err(ChatError::Limit { what: "nesting" });
        }
    }
    Ok(())
}

/// Runs `work` on a stack of its own: the parser and the interpreter nest with the template, within the limits above,
/// and the caller's stack may be small.
pub(super) fn on_deep_stack<T: Send>(
    work: impl FnOnce() -> Result<T, ChatError> + Send,
) -> Result<T, ChatError> {
    const STACK_BYTES: usize = 64 << 20;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| ChatError::Render { why: error.to_string() })?;
        thread.join().unwrap_or_else(|_| Err(ChatError::Render { why: "the template engine failed".into() }))
    })
}
