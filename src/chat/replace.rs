//! What templates find when they run: Jinja's filters and operators, Python's text methods, and the functions that
//! `transformers` adds; each charges the budget for what it reads before it runs and for what it makes.
//! Which instruction becomes which call is in `limit.rs`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State};

use super::limit::{Budget, FILTERS, TESTS};
use super::{REFUSED, calendar, json};

/// The environment of one rendering.
pub(super) fn environment(budget: &Budget, now: SystemTime) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_recursion_limit(64);
    env.set_debug(false);
    env.remove_global("debug");
    let account = budget.clone();
    env.set_formatter(move |out, state, value| {
        account.charge(value)?;
        minijinja::escape_formatter(out, state, value)
    });
    add_operators(&mut env, budget);
    add_filters(&mut env, budget);
    let account = budget.clone();
    env.set_unknown_method_callback(move |state, value, method, args| {
        account.charge(value)?;
        args.iter().try_for_each(|arg| account.charge(arg))?;
        let made = method_of(&account, state, value, method, args)?;
        account.charge(&made).map(|()| made)
    });
    env.add_function("raise_exception", |why: String| -> Result<Value, Error> {
        Err(invalid(format!("{REFUSED}{why}")))
    });
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    env.add_function("strftime_now", move |format: String| calendar::format(&format, seconds));
    env
}

fn invalid(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// Adds a function of values that charges for its arguments and its result.
fn add(
    env: &mut Environment<'static>,
    budget: &Budget,
    name: &'static str,
    run: impl Fn(&mut State<'_, '_>, &[Value]) -> Result<Value, Error> + Send + Sync + 'static,
) {
    let account = budget.clone();
    env.add_function(
        name,
        move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
            let args: Vec<Value> = args.0.into_iter().map(ValueOrKwargs::into_value).collect();
            args.iter().try_for_each(|arg| account.charge(arg))?;
            let made = run(state, &args)?;
            account.charge(&made).map(|()| made)
        },
    );
}

fn two(args: &[Value]) -> Result<(&Value, &Value), Error> {
    match args {
        [left, right] => Ok((left, right)),
        _ => Err(Error::from(ErrorKind::MissingArgument)),
    }
}

fn add_operators(env: &mut Environment<'static>, budget: &Budget) {
    add(env, budget, "__add", |_, args| {
        let (left, right) = two(args)?;
        match (left.as_str(), right.as_str()) {
            (Some(left), Some(right)) => Ok(Value::from(format!("{left}{right}"))),
            _ if left.kind() == ValueKind::Seq && right.kind() == ValueKind::Seq => {
                Ok(left.try_iter()?.chain(right.try_iter()?).collect())
            }
            _ => number(left, right, i64::checked_add, |left, right| left + right, "+"),
        }
    });
    add(env, budget, "__multiply", |_, args| {
        let (left, right) = two(args)?;
        number(left, right, i64::checked_mul, |left, right| left * right, "*")
    });
    add(env, budget, "__concat", |_, args| {
        two(args).map(|(left, right)| Value::from(format!("{left}{right}")))
    });
    add(env, budget, "__eq", |_, args| two(args).map(|(left, right)| Value::from(left == right)));
    add(env, budget, "__ne", |_, args| two(args).map(|(left, right)| Value::from(left != right)));
    add(env, budget, "__lt", |_, args| two(args).map(|(left, right)| Value::from(left < right)));
    add(env, budget, "__le", |_, args| two(args).map(|(left, right)| Value::from(left <= right)));
    add(env, budget, "__gt", |_, args| two(args).map(|(left, right)| Value::from(left > right)));
    add(env, budget, "__ge", |_, args| two(args).map(|(left, right)| Value::from(left >= right)));
    add(env, budget, "__in", |state, args| state.perform_test("in", args).map(Value::from));
    add(env, budget, "__slice", |_, args| slice(args));
    add(env, budget, "__list", |_, args| Ok(args.iter().cloned().collect()));
    add(env, budget, "__map", |_, args| {
        Ok(Value::from_pairs(args.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()))))
    });
    let account = budget.clone();
    env.add_function("namespace", move |values: Option<ValueOrKwargs>| -> Result<Value, Error> {
        let made = minijinja::functions::namespace(values)?;
        account.charge(&made).map(|()| made)
    });
    let account = budget.clone();
    env.add_function("dict", move |value: Option<Value>, more: Kwargs| -> Result<Value, Error> {
        let made = minijinja::functions::dict(value, more)?;
        account.charge(&made).map(|()| made)
    });
}

/// Arithmetic on whole numbers where both are, else on fractions.
fn number(
    left: &Value,
    right: &Value,
    whole: fn(i64, i64) -> Option<i64>,
    fraction: fn(f64, f64) -> f64,
    sign: &str,
) -> Result<Value, Error> {
    if !(left.is_number() && right.is_number()) {
        return Err(invalid(format!("{} {sign} {} is not possible", left.kind(), right.kind())));
    }
    if left.is_integer() && right.is_integer() {
        let made = whole(i64::try_from(left.clone())?, i64::try_from(right.clone())?);
        return made.map(Value::from).ok_or_else(|| invalid("a number too large"));
    }
    Ok(Value::from(fraction(f64::try_from(left.clone())?, f64::try_from(right.clone())?)))
}

/// Python's `value[start:stop:step]` of a text or a list.
fn slice(args: &[Value]) -> Result<Value, Error> {
    let [value, bounds @ ..] = args else { return Err(Error::from(ErrorKind::MissingArgument)) };
    let bound = |at: usize| match bounds.get(at) {
        Some(value) if !value.is_none() && !value.is_undefined() => i64::try_from(value.clone()).map(Some),
        _ => Ok(None),
    };
    let (start, stop, step) = (bound(0)?, bound(1)?, bound(2)?.unwrap_or(1));
    let items: Vec<Value> = match value.as_str() {
        Some(text) => text.chars().map(Value::from).collect(),
        None if value.is_undefined() => Vec::new(),
        None => value.try_iter()?.collect(),
    };
    let len = items.len() as i64;
    if step == 0 {
        return Err(invalid("cannot slice by step size of 0"));
    }
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |bound: Option<i64>, absent: i64| match bound {
        None => absent,
        Some(at) if at < 0 => at.saturating_add(len).clamp(low, high),
        Some(at) => at.clamp(low, high),
    };
    let (first, last) = if step > 0 { (0, len) } else { (len - 1, -1) };
    let (mut at, stop) = (place(start, first), place(stop, last));
    let mut taken = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        taken.extend(usize::try_from(at).ok().and_then(|at| items.get(at)).cloned());
        at = at.saturating_add(step);
    }
    if value.as_str().is_some() {
        return Ok(Value::from(taken.iter().filter_map(Value::as_str).collect::<String>()));
    }
    Ok(Value::from(taken))
}

fn add_filters(env: &mut Environment<'static>, budget: &Budget) {
    let account = budget.clone();
    env.add_filter("replace", move |text: String, from: String, to: String| {
        replace(&account, &text, &from, &to)
    });
    let account = budget.clone();
    env.add_filter("join", move |items: Value, separator: Option<String>| {
        join(&account, &items, separator.as_deref().unwrap_or(""))
    });
    env.add_filter("tojson", |value: Value, options: Kwargs| json::to_json(&value, &options));
    for (filter, name) in FILTERS {
        add(env, budget, name, move |state, args| state.apply_filter(filter, args));
    }
    for (test, name) in TESTS {
        add(env, budget, name, move |state, args| state.perform_test(test, args).map(Value::from));
    }
    // `map` applies filters by name: only those above may be found.
    for filter in [
        "batch",
        "slice",
        "format",
        "indent",
        "pprint",
        "urlencode",
        "sum",
        "groupby",
        "chain",
        "zip",
        "attr",
    ] {
        env.remove_filter(filter);
    }
}

/// Python's methods; those that make much out of little are charged before they run.
fn method_of(
    budget: &Budget,
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (method, args, value.as_str()) {
        ("replace", [from, to], Some(text)) => {
            let (Some(from), Some(to)) = (from.as_str(), to.as_str()) else {
                return Err(invalid("replace wants texts"));
            };
            replace(budget, text, from, to).map(Value::from)
        }
        ("join", [items], Some(separator)) => join(budget, items, separator).map(Value::from),
        ("replace" | "join" | "format" | "center" | "ljust" | "rjust" | "zfill", _, _) => {
            Err(Error::new(ErrorKind::UnknownMethod, format!("{method} in this form")))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn replace(budget: &Budget, text: &str, from: &str, to: &str) -> Result<String, Error> {
    let found = text.matches(from).count() as u64;
    budget.take(found.saturating_mul(to.len() as u64).saturating_add(text.len() as u64))?;
    Ok(text.replace(from, to))
}

fn join(budget: &Budget, items: &Value, separator: &str) -> Result<String, Error> {
    let mut joined = String::new();
    for (at, item) in items.try_iter()?.enumerate() {
        if at > 0 {
            budget.take(separator.len() as u64)?;
            joined.push_str(separator);
        }
        budget.charge(&item)?;
        match item.as_str() {
            Some(text) => joined.push_str(text),
            None => joined.push_str(&item.to_string()),
        }
    }
    Ok(joined)
}
