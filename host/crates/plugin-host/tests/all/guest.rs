//! Guests as component text: small, hostile, and built without a wasm toolchain.

/// A guest with chosen parts. What is not chosen does no harm: it answers "no problems".
#[derive(Clone, Default)]
pub struct Guest {
    validate: Option<String>,
    rewrite: Option<String>,
    start: Option<String>,
    describe: Option<String>,
    fields: String,
    parts: String,
    pages: Option<u32>,
    imports: String,
    lowered: String,
    env: String,
    core_imports: String,
}

/// A component whose hook has the wrong types, with another version in the place of this one's when that is replaced.
pub const WRONG_TYPES: &str = r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m)) (func $f (canon lift (core func $i "f")))
    (instance $v (export "validate" (func $f))) (export "taxiway:plugin/validate@0.1.0" (instance $v)))"#;

/// One whose hook lacks its function.
pub const MISSING_EXPORT: &str = r#"(component (instance $v) (export "taxiway:plugin/validate@0.1.0" (instance $v)))"#;

/// One that imports what no server has.
pub const UNKNOWN_IMPORT: &str = r#"(component (import "acme:tools/magic@1.0.0" (instance (export "cast" (func)))))"#;

/// Where canned texts lie in the guest's memory.
const TEXT: u32 = 2048;
const VERSION: u32 = 3072;

impl Guest {
    /// A guest whose `validate` runs this code. It must leave the address of the answer: see [`Guest::no_problems`].
    pub fn validating(code: &str) -> Guest {
        Guest { validate: Some(code.to_owned()), ..Guest::default() }
    }

    /// The code that answers with no problems: memory is zero, and zeroes are `ok` with an empty list.
    pub fn no_problems() -> &'static str {
        "i32.const 1024"
    }

    /// A guest that agrees to everything.
    pub fn harmless() -> Guest {
        Guest::validating(Guest::no_problems())
    }

    /// A guest that says so many times the same thing.
    pub fn saying(times: u32, severity: u8, path: &str, message: &str) -> Guest {
        let message_at = TEXT + 512;
        let code = format!(
            "(local $i i32) (local $at i32)
             (local.set $at (call $take (i32.const {size})))
             (i32.store (i32.const 1032) (local.get $at))
             (i32.store (i32.const 1036) (i32.const {times}))
             (loop $next
               (i32.store8 (local.get $at) (i32.const {severity}))
               (i32.store offset=4 (local.get $at) (i32.const {TEXT}))
               (i32.store offset=8 (local.get $at) (i32.const 4))
               (i32.store offset=12 (local.get $at) (i32.const {path_at}))
               (i32.store offset=16 (local.get $at) (i32.const {path_size}))
               (i32.store offset=20 (local.get $at) (i32.const {message_at}))
               (i32.store offset=24 (local.get $at) (i32.const {message_size}))
               (i32.store offset=28 (local.get $at) (i32.const 0))
               (local.set $at (i32.add (local.get $at) (i32.const 40)))
               (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if $next (i32.lt_u (local.get $i) (i32.const {times}))))
             i32.const 1024",
            size = times * 40,
            path_at = TEXT + 256,
            path_size = path.len(),
            message_size = message.len(),
        );
        Guest::validating(&code).text(TEXT, "code").text(TEXT + 256, path).text(message_at, message)
    }

    /// A guest that writes 3.9 MB to standard output, 10,000 times without a loop or a function of its own: epochs are looked at
    /// nowhere in it. Then it does something else.
    pub fn talking(then: &str) -> Guest {
        let write = "(call $write (local.get $out) (i32.const 0) (i32.const 3900000) (i32.const 16384))\n";
        Guest::validating(&format!("(local $out i32) (local.set $out (call $stdout)) {} {then}", write.repeat(10_000)))
            .pages(60)
            .importing(STANDARD_OUTPUT)
            .calling("stdout", "cli", "get-stdout", "(result i32)")
            .calling("write", "streams", "[method]output-stream.write", "(param i32 i32 i32 i32)")
    }

    /// A guest that agrees, but is made of so many instances of one module with so many imports: making them is one step, which
    /// nothing can interrupt.
    pub fn linking(imports: u32, instances: u32) -> Guest {
        let each = |text: &dyn Fn(u32) -> String| (0..imports).map(text).collect::<String>();
        Guest::harmless().parts(&format!(
            "(core instance $many {}) (core module $wide {}) {}",
            each(&|i| format!("(export \"{i}\" (func $log))")),
            each(&|i| format!("(import \"m\" \"{i}\" (func (param i32 i32 i32)))")),
            "(core instance (instantiate $wide (with \"m\" (instance $many))))".repeat(instances as usize),
        ))
    }

    /// A guest that prints two megabytes, and agrees.
    pub fn flooding() -> Guest {
        Guest::validating(
            "(local $i i32) (local $out i32)
             (local.set $out (call $stdout))
             (loop $next
               (call $write (local.get $out) (i32.const 2048) (i32.const 4096) (i32.const 16384))
               (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if $next (i32.lt_u (local.get $i) (i32.const 500))))
             i32.const 1024",
        )
        .text(TEXT, "all work and no play\n")
        .importing(STANDARD_OUTPUT)
        .calling("stdout", "cli", "get-stdout", "(result i32)")
        .calling(
            "write",
            "streams",
            "[method]output-stream.blocking-write-and-flush",
            "(param i32 i32 i32 i32)",
        )
    }

    /// A guest that waits for an hour on the monotonic clock.
    pub fn asleep() -> Guest {
        Guest::validating("(call $wait (call $subscribe (i64.const 3600000000000))) i32.const 1024")
            .importing(
                r#"
      (import "wasi:io/poll@0.2.0" (instance $poll
        (export "pollable" (type $pollable (sub resource)))
        (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
      (alias export $poll "pollable" (type $pollable))
      (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
        (alias outer 1 $pollable (type $p)) (export "pollable" (type $pp (eq $p)))
        (export "subscribe-duration" (func (param "when" u64) (result (own $pp))))))"#,
            )
            .calling("wait", "poll", "[method]pollable.block", "(param i32)")
            .calling("subscribe", "clock", "subscribe-duration", "(param i64) (result i32)")
    }

    /// A guest that fills and copies 100 MiB again and again: each time one instruction, which nothing can interrupt.
    pub fn filling() -> Guest {
        Guest::validating(
            "(drop (memory.grow (i32.const 1600)))
             (loop $again
               (memory.fill (i32.const 32768) (i32.const 1) (i32.const 100000000))
               (memory.copy (i32.const 32768) (i32.const 65536) (i32.const 100000000))
               (br $again)) unreachable",
        )
    }

    /// One function with thousands of values that live across thousands of branches: minutes for a register allocator.
    pub fn slow_to_compile() -> Guest {
        const VALUES: usize = 4_000;
        const BRANCHES: usize = 4_000;
        let locals = "(local i64)".repeat(VALUES);
        let branches: String = (0..BRANCHES)
            .map(|i| {
                let (a, b, c) = (i % VALUES, (i * 7 + 1) % VALUES, (i * 13 + 5) % VALUES);
                format!(
                    "(if (i64.eqz (local.get {a})) (then (local.set {b} (i64.add (local.get {b}) (local.get {c})))) (else (local.set {c} (i64.xor (local.get {a}) (local.get {b})))))"
                )
            })
            .collect();
        let uses: String =
            (0..VALUES).map(|i| format!("(global.set $sum (i64.add (global.get $sum) (local.get {i})))")).collect();
        let fields = format!(
            "(global $sum (mut i64) (i64.const 0)) (func {locals} (loop $again {branches} (br_if $again (i64.eqz (local.get 0)))) {uses})"
        );
        Guest::harmless().fields(&fields)
    }

    /// A guest that gives up, or not, before it makes what instances come after its own: at random.
    pub fn failing_at_random(self) -> Guest {
        self.starting("(if (i64.eqz (i64.and (call $roll) (i64.const 1))) (then unreachable))")
            .importing("(import \"wasi:random/random@0.2.3\" (instance $random (export \"get-random-u64\" (func (result u64)))))")
            .calling("roll", "random", "get-random-u64", "(result i64)")
    }

    /// A guest whose `rewrite` answers with this text as the configuration.
    pub fn rewriting_to(config: &str) -> Guest {
        let code = format!(
            "(i32.store8 (i32.const 1032) (i32.const 1))
             (i32.store8 (i32.const 1036) (i32.const 1))
             (i32.store (i32.const 1040) (i32.const {TEXT}))
             (i32.store (i32.const 1044) (i32.const {}))
             i32.const 1024",
            config.len()
        );
        Guest { rewrite: Some(code), ..Guest::default() }.text(TEXT, config)
    }

    /// A guest that says of itself that it is of this version, and is content with its settings.
    pub fn describing(mut self, version: &str) -> Guest {
        let code = format!(
            "(i32.store (i32.const 1108) (i32.const {VERSION})) (i32.store (i32.const 1112) (i32.const {})) i32.const 1100",
            version.len()
        );
        self.describe = Some(code);
        self.text(VERSION, version)
    }

    /// Code that runs when the component is instantiated.
    pub fn starting(mut self, code: &str) -> Guest {
        self.start = Some(code.to_owned());
        self
    }

    /// Further fields of the core module.
    pub fn fields(mut self, fields: &str) -> Guest {
        self.fields.push_str(fields);
        self
    }

    /// Further parts of the component, after its own.
    pub fn parts(mut self, parts: &str) -> Guest {
        self.parts.push_str(parts);
        self
    }

    /// Pages of 64 KiB that its memory begins with.
    pub fn pages(mut self, pages: u32) -> Guest {
        self.pages = Some(pages);
        self
    }

    /// Further imports of the component.
    pub fn importing(mut self, imports: &str) -> Guest {
        self.imports.push_str(imports);
        self
    }

    /// A function of an imported instance, called `$name` in the guest, with these core parameters and results.
    pub fn calling(mut self, name: &str, instance: &str, function: &str, core_type: &str) -> Guest {
        let options = "(memory $memory) (realloc $realloc)";
        self.lowered
            .push_str(&format!("(core func ${name} (canon lower (func ${instance} \"{function}\") {options}))"));
        self.env.push_str(&format!("(export \"{name}\" (func ${name}))"));
        self.core_imports.push_str(&format!("(import \"env\" \"{name}\" (func ${name} {core_type}))"));
        self
    }

    /// A text in the guest's memory.
    pub fn text(self, at: u32, text: &str) -> Guest {
        let escaped: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
        self.fields(&format!("(data (i32.const {at}) \"{escaped}\")"))
    }

    /// The component in text.
    pub fn wat(&self) -> String {
        let export = |name: &str, code: &Option<String>| match code {
            None => String::new(),
            Some(code) => format!(
                "(func (export \"{name}\") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) {code})"
            ),
        };
        let validate = export("validate", &self.validate);
        let rewrite = export("rewrite", &self.rewrite);
        let describe = self.describe.as_ref().map_or_else(String::new, |code| {
            format!(
                "(func (export \"describe\") (result i32) {code})
                 (func (export \"check-settings\") (param i32 i32) (result i32) i32.const 1024)"
            )
        });
        let start = self.start.as_ref().map_or_else(String::new, |code| format!("(func $start {code}) (start $start)"));
        let pages = self.pages.unwrap_or(1);
        let lift = |name: &str, answer: &str, there: bool| {
            if !there {
                return String::new();
            }
            format!(
                "(func ${name} (param \"job\" $job) (param \"context\" $context) (result (result {answer} (error $hook-error)))
                   (canon lift (core func $guest \"{name}\") (memory $memory) (realloc $realloc)))
                 (instance $i-{name} (export \"{name}\" (func ${name})))
                 (export \"taxiway:plugin/{name}@0.1.0\" (instance $i-{name}))"
            )
        };
        let lift_validate = lift("validate", "(list $problem)", self.validate.is_some());
        let lift_rewrite = lift("rewrite", "(option $change)", self.rewrite.is_some());
        let (description, lift_metadata) = match &self.describe {
            None => ("", ""),
            Some(_) => (DESCRIPTION, LIFT_METADATA),
        };
        // A named record has to be exported to be part of an exported function's type.
        let change = if self.rewrite.is_some() {
            "(type $variable' (record (field \"name\" string) (field \"value\" string) (field \"secret\" bool)))
             (export $variable \"variable\" (type $variable'))
             (type $change' (record (field \"config\" (option string)) (field \"env\" (list $variable)) (field \"labels\" (list (tuple string string)))))
             (export $change \"change\" (type $change'))"
        } else {
            ""
        };
        format!(
            r#"(component
  {TYPES}
  {HOST}
  {imports}
  {change} {description}
  (core module $shared
    (memory (export "memory") {pages})
    (global $free (mut i32) (i32.const 32768))
    (func $take (export "take") (param $size i32) (result i32) (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.set $free (i32.add (local.get $at) (local.get $size)))
      (block $fits
        (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
        (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get $size) (i32.const 65536))))) (then unreachable)))
      (local.get $at))
    (func (export "realloc") (param i32 i32 i32) (param $size i32) (result i32) (call $take (local.get $size))))
  (core instance $s (instantiate $shared))
  (alias core export $s "memory" (core memory $memory))
  (alias core export $s "realloc" (core func $realloc))
  (core func $log (canon lower (func $host "log") (memory $memory)))
  (core func $settings (canon lower (func $host "settings") (memory $memory) (realloc $realloc)))
  (core func $secret (canon lower (func $host "secret") (memory $memory) (realloc $realloc)))
  {lowered}
  (core instance $imports
    (export "memory" (memory $memory)) (export "take" (func $s "take")) (export "log" (func $log))
    (export "settings" (func $settings)) (export "secret" (func $secret)) {env})
  (core module $main
    (import "env" "memory" (memory 1))
    (import "env" "take" (func $take (param i32) (result i32)))
    (import "env" "log" (func $log (param i32 i32 i32)))
    (import "env" "settings" (func $settings (param i32)))
    (import "env" "secret" (func $secret (param i32 i32 i32)))
    {core_imports}
    {start} {fields} {validate} {rewrite} {describe})
  (core instance $guest (instantiate $main (with "env" (instance $imports))))
  {lift_validate} {lift_rewrite} {lift_metadata} {parts})"#,
            fields = self.fields,
            parts = self.parts,
            imports = self.imports,
            lowered = self.lowered,
            env = self.env,
            core_imports = self.core_imports,
        )
    }

    /// The component in binary.
    pub fn build(&self) -> Vec<u8> {
        let text = self.wat();
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }
}

const TYPES: &str = r#"
  (import "taxiway:plugin/types@0.1.0" (instance $types
    (type $severity' (enum "error" "warning" "info"))
    (export "severity" (type $severity (eq $severity')))
    (type $problem' (record (field "severity" $severity) (field "code" string) (field "path" string) (field "message" string) (field "help" (option string))))
    (export "problem" (type (eq $problem')))
    (type $job' (record (field "id" string) (field "name" string) (field "attempt" u32) (field "config" string) (field "details" string)))
    (export "job" (type (eq $job')))
    (type $gpu' (record (field "index" u32) (field "uuid" string) (field "name" string) (field "memory-total" u64) (field "memory-free" u64) (field "compute-capability" (tuple u32 u32)) (field "details" string)))
    (export "gpu" (type $gpu (eq $gpu')))
    (type $context' (record (field "stage" string) (field "dry-run" bool) (field "gpus" (list $gpu)) (field "details" string)))
    (export "context" (type (eq $context')))
    (type $hook-error' (record (field "code" string) (field "message" string) (field "retry-after-ms" (option u64))))
    (export "hook-error" (type (eq $hook-error')))))
  (alias export $types "problem" (type $problem))
  (alias export $types "job" (type $job))
  (alias export $types "context" (type $context))
  (alias export $types "hook-error" (type $hook-error))"#;

/// Standard output: the instances `cli` and `streams`.
const STANDARD_OUTPUT: &str = r#"
  (import "wasi:io/error@0.2.3" (instance $io-error (export "error" (type (sub resource)))))
  (alias export $io-error "error" (type $io-error'))
  (import "wasi:io/streams@0.2.3" (instance $streams
    (alias outer 1 $io-error' (type $e')) (export "error" (type $e (eq $e')))
    (export "output-stream" (type $out (sub resource)))
    (type $stream-error' (variant (case "last-operation-failed" (own $e)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $stream-error')))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $out)) (param "contents" (list u8)) (result (result (error $stream-error)))))
    (export "[method]output-stream.write"
      (func (param "self" (borrow $out)) (param "contents" (list u8)) (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $output-stream))
  (import "wasi:cli/stdout@0.2.3" (instance $cli
    (alias outer 1 $output-stream (type $o')) (export "output-stream" (type $o (eq $o')))
    (export "get-stdout" (func (result (own $o))))))"#;

const DESCRIPTION: &str = r#"
  (type $description' (record (field "name" string) (field "version" string) (field "summary" string) (field "settings-schema" string) (field "details" string)))
  (export $description "description" (type $description'))"#;

const LIFT_METADATA: &str = r#"
  (func $describe (result $description) (canon lift (core func $guest "describe") (memory $memory)))
  (func $check-settings (param "settings" string) (result (list $problem))
    (canon lift (core func $guest "check-settings") (memory $memory) (realloc $realloc)))
  (instance $i-metadata (export "describe" (func $describe)) (export "check-settings" (func $check-settings)))
  (export "taxiway:plugin/metadata@0.1.0" (instance $i-metadata))"#;

const HOST: &str = r#"
  (import "taxiway:plugin/host@0.1.0" (instance $host
    (type $level' (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $level')))
    (export "log" (func (param "level" $level) (param "message" string)))
    (export "settings" (func (result string)))
    (export "secret" (func (param "name" string) (result (option string))))))"#;
