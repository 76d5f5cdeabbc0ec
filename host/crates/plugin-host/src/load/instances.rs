//! How many core instances a component may have: as many as the limit says, fewer of large ones.
//!
//! An instance is made of what its module declares: a place for each import, function and global. That memory is no linear memory,
//! which is counted when it grows, and it is there before the guest's first step: a megabyte of module would be a gigabyte of
//! instances if it were instantiated a hundred times.

use wasmparser::{Encoding, Parser, Payload};

/// Bytes that all core instances of one call may have together (128 MiB): once more what the default limit gives it as linear memory.
/// A Python component links thirty modules, the largest of which has instances of about a megabyte.
const TOGETHER: u64 = 128 << 20;

/// What wasmtime keeps of each: a function's reference, of an import where it comes from too, a global's value, and the rest of what a
/// module declares (wasmtime_environ::VMOffsets).
const FUNCTION: u64 = 32;
const IMPORT: u64 = 64;
const GLOBAL: u64 = 16;
const OTHER: u64 = 32;

/// The core instances that a call of this component may have, of which at most `limit`.
pub fn allowed(component: &[u8], limit: usize) -> usize {
    let fitting = TOGETHER / largest(component).max(1);
    limit.min(usize::try_from(fitting).unwrap_or(usize::MAX)).max(1)
}

/// The size of an instance of its largest module, in bytes. What cannot be read ends the search: the compiler refuses it.
fn largest(component: &[u8]) -> u64 {
    let (mut largest, mut size) = (0, 0);
    for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
        size = match payload {
            Payload::Version { encoding: Encoding::Module, .. } => 0,
            Payload::ImportSection(imports) => size + IMPORT * imports.into_imports().count() as u64,
            Payload::FunctionSection(functions) => size + FUNCTION * u64::from(functions.count()),
            Payload::GlobalSection(globals) => size + GLOBAL * u64::from(globals.count()),
            Payload::TableSection(tables) => size + OTHER * u64::from(tables.count()),
            Payload::MemorySection(memories) => size + OTHER * u64::from(memories.count()),
            Payload::TagSection(tags) => size + OTHER * u64::from(tags.count()),
            Payload::DataSection(segments) => size + OTHER * u64::from(segments.count()),
            _ => size,
        };
        largest = largest.max(size);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(format!("(component {text})")).unwrap()
    }

    #[test]
    fn small_ones_may_be_as_many_as_the_limit_says_and_large_ones_fewer() {
        let functions = |count| "(func)".repeat(count);
        let small = component(&format!("(core module {}) (core module)", functions(100)));
        assert_eq!(largest(&small), 3200);
        assert_eq!(allowed(&small, 200), 200);

        let globals = "(global i32 (i32.const 0))".repeat(100_000);
        let large =
            component(&format!("(core module) (component (core module {globals})) (core module {})", functions(9)));
        assert_eq!(largest(&large), 1_600_000);
        assert_eq!(allowed(&large, 200), 83);
        assert_eq!(allowed(&large, 50), 50);
    }

    #[test]
    fn each_import_counts_and_what_cannot_be_read_does_no_harm() {
        let imports = "(import \"\" \"\" (func))".repeat(7);
        let mut whole = component(&format!("(core module {imports})"));
        assert_eq!(largest(&whole), 7 * IMPORT);
        whole.truncate(whole.len() - 1);
        assert!(largest(&whole) <= 7 * IMPORT);
        assert_eq!(allowed(b"", 200), 200);
        assert_eq!(allowed(&component(""), 0), 1);
    }
}
