module github.com/aegisagent/aegisagent-go/conformance

go 1.25.0

require (
	github.com/aegisagent/aegisagent-go v0.0.0
	github.com/gowebpki/jcs v1.0.2
	golang.org/x/mod v0.33.0
	gopkg.in/yaml.v3 v3.0.1
	honnef.co/go/tools v0.7.0
)

require (
	github.com/BurntSushi/toml v1.4.1-0.20240526193622-a339e1f7089c // indirect
	golang.org/x/exp/typeparams v0.0.0-20231108232855-2478ac86f678 // indirect
	golang.org/x/sync v0.19.0 // indirect
	golang.org/x/tools v0.41.0 // indirect
)

replace github.com/aegisagent/aegisagent-go => ../
