// Package aegisagent makes a tool function run only as it was authorized.
//
// [Protect] freezes the parameters of a call into one text, asks the server about exactly that, waits for an approval where one is
// needed, and runs the function with what is read back from the frozen text. Everything unexpected is a [*Denied], and the function
// does not run. Receipts are verified offline by the package receipts. See README.md.
package aegisagent

// Version of this module; requests name it.
const Version = "0.1.0"
