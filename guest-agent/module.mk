# guest-agent
