"""Language models that train on their own answers: verified, voted on, or judged by themselves."""
