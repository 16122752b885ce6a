module github.com/aegisagent/aegisagent-go

go 1.22
