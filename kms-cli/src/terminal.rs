//! Text that came from elsewhere, made harmless for a terminal and a log.

/// The longest foreign text that is shown, in characters.
pub const MAX_FOREIGN_CHARS: usize = 512;

/// Replaces control characters, so that a server's message cannot move the cursor or forge a second line, and cuts at
/// [`MAX_FOREIGN_CHARS`].
pub fn harmless(text: &str) -> String {
    let mut out: String = text.chars().map(shown).take(MAX_FOREIGN_CHARS).collect();
    if text.chars().nth(MAX_FOREIGN_CHARS).is_some() {
        out.push('…');
    }
    out
}

/// Replaces control characters in a text of ours, which may name a file of any name. It is not cut.
pub fn one_line(text: &str) -> String {
    text.chars().map(shown).collect()
}

fn shown(c: char) -> char {
    if is_unsafe(c) { '\u{fffd}' } else { c }
}

/// Control characters, and the bidirectional overrides that reorder what people read.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_newlines_and_overrides_are_replaced() {
        assert_eq!(harmless("a\x1b[2Jb\nc\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
    }

    #[test]
    fn a_long_text_of_ours_stays_whole() {
        let long = "x".repeat(MAX_FOREIGN_CHARS + 1);
        assert_eq!(one_line(&format!("{long}\n")), format!("{long}\u{fffd}"));
    }

    #[test]
    fn a_text_at_the_bound_is_whole_and_one_longer_is_cut() {
        let whole = "x".repeat(MAX_FOREIGN_CHARS);
        assert_eq!(harmless(&whole), whole);
        assert_eq!(harmless(&format!("{whole}y")), format!("{whole}…"));
    }
}
