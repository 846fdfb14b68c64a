"""Documents from files, folders, Hugging Face datasets and Ray: found, decoded, and divided into sides."""
