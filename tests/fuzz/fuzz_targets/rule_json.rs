#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/rule_json.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("rule_json"), |bytes: &[u8]| target::run(bytes));
