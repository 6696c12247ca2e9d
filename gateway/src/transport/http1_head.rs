//! Detects whether the head of an HTTP/1 request is complete.

/// The head of an HTTP/1 request, as far as it was received.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Received bytes of the empty line at its end.
    end_bytes: usize,
    is_answered: bool,
}

impl Head {
    const END: &[u8] = b"\r\n\r\n";

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        if self.is_answered && !bytes.is_empty() {
            *self = Self::default();
        }
        for &byte in bytes {
            match Self::END.get(self.end_bytes) {
                Some(&expected) if byte == expected => self.end_bytes += 1,
                Some(_) => self.end_bytes = usize::from(byte == Self::END[0]),
                // The rest is the message body.
                None => return,
            }
        }
    }

    /// An answer has begun: the next bytes are the head of another request.
    pub(super) fn answered(&mut self) {
        self.is_answered = true;
    }

    pub(super) fn is_incomplete(&self) -> bool {
        !self.is_answered && self.end_bytes < Self::END.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_request_is_half_until_its_empty_line() {
        let mut head = Head::default();
        for part in ["POST / HTTP/1.1\r\nhost: x\r", "\n\r", "x\r\n\r"] {
            head.receive(part.as_bytes());
            assert!(head.is_incomplete(), "{part:?}");
        }
        head.receive(b"\nand a message\r\n");
        assert!(!head.is_incomplete());
        head.answered();
        assert!(!head.is_incomplete(), "an idle connection");
        head.receive(b"P");
        assert!(head.is_incomplete(), "the next request");
    }
}
