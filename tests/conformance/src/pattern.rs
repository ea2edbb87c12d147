//! Names by pattern: `*` stands for any run of characters, everything else for itself.

/// Whether `pattern` covers all of `name`.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(part) = last.replace(part) {
            // Between two stars the earliest place leaves the most for what follows.
            match str::find(rest, part) {
                Some(at) => rest = &rest[at + str::len(part)..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last: &str| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        assert!(matches("gemm/*", "gemm/gemm_nt/f32/one") && matches("*", "") && matches("a", "a"));
        assert!(matches("*/f16/*", "gemm/gemm_nt/f16/one") && matches("a*b*c", "abbc"));
        assert!(!matches("gemm", "gemm/one") && !matches("*/f16", "gemm/f16/one") && !matches("ab*b", "ab"));
        assert!(!matches("a*b*c", "acb") && matches("*aab", "aaab"));
    }
}
