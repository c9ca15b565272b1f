#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/token.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("token"), |bytes: &[u8]| target::run(bytes));
