module github.com/aegisagent/aegisagent-go/bench

go 1.25.0

require (
	github.com/aegisagent/aegisagent-go v0.0.0
	github.com/gowebpki/jcs v1.0.2
)

replace github.com/aegisagent/aegisagent-go => ../../../sdks/go
