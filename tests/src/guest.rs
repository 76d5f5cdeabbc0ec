//! Plugins written by hand in WebAssembly text: what no toolchain would make, a test can.

/// A validator. Its `validate` runs `body`: text of a core function that leaves the address of its result on the stack, or
/// never comes so far. At address 16 there is a result that finds nothing wrong.
#[must_use]
pub fn validator(body: &str) -> Vec<u8> {
    // Names and types are those of wit/plugin.wit; the sixteen parameters are its two records, flattened
    // (component-model, CanonicalABI.md, "Flattening").
    let text = format!(
        r#"(component
            (core module $code
                (memory (export "memory") 2)
                (global $next (mut i32) (i32.const 4096))
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                    (local $at i32)
                    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
                    (global.set $next (i32.add (local.get $at) (local.get 3)))
                    (local.get $at))
                (func (export "validate")
                    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                    {body}))
            (core instance $code (instantiate $code))

            (type $severity' (enum "error" "warning" "info"))
            (export $severity "severity" (type $severity'))
            (type $problem' (record
                (field "severity" $severity) (field "code" string) (field "path" string) (field "message" string)
                (field "help" (option string))))
            (export $problem "problem" (type $problem'))
            (type $job' (record
                (field "id" string) (field "name" string) (field "attempt" u32) (field "config" string)
                (field "details" string)))
            (export $job "job" (type $job'))
            (type $gpu' (record
                (field "index" u32) (field "uuid" string) (field "name" string) (field "memory-total" u64)
                (field "memory-free" u64) (field "compute-capability" (tuple u32 u32)) (field "details" string)))
            (export $gpu "gpu" (type $gpu'))
            (type $context' (record
                (field "stage" string) (field "dry-run" bool) (field "gpus" (list $gpu)) (field "details" string)))
            (export $context "context" (type $context'))
            (type $hook-error' (record
                (field "code" string) (field "message" string) (field "retry-after-ms" (option u64))))
            (export $hook-error "hook-error" (type $hook-error'))

            (func $validate
                (param "job" $job) (param "context" $context) (result (result (list $problem) (error $hook-error)))
                (canon lift (core func $code "validate")
                    (memory (core memory $code "memory")) (realloc (core func $code "cabi_realloc"))))
            (instance $hook (export "validate" (func $validate)))
            (export "taxiway:plugin/validate@0.1.0" (instance $hook)))"#
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// Finds nothing wrong with any job.
#[must_use]
pub fn content() -> Vec<u8> {
    validator("(i32.const 16)")
}

/// Never comes to an end.
#[must_use]
pub fn endless_loop() -> Vec<u8> {
    validator("(loop $again (br $again)) (unreachable)")
}

/// Takes memory and writes to it until it gets no more, and then ends as allocators do.
#[must_use]
pub fn endless_growth() -> Vec<u8> {
    validator(
        "(local $pages i32)
         (loop $again
            (local.set $pages (memory.grow (i32.const 16)))
            (if (i32.eq (local.get $pages) (i32.const -1)) (then (unreachable)))
            (i32.store (i32.mul (local.get $pages) (i32.const 65536)) (i32.const 1))
            (br $again))
         (unreachable)",
    )
}

/// Divides by zero.
#[must_use]
pub fn trap() -> Vec<u8> {
    validator("(i32.div_u (i32.const 1) (i32.const 0))")
}
