//! Text from elsewhere that people read: the characters that would control their terminal.

/// Whether it is neither a control character nor one that changes the order in which others are shown.
pub fn is_plain(c: char) -> bool {
    let is_layout =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !is_layout
}
